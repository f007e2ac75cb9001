# The most that any role of a deployment can do, whatever its own policy says. Whoever applies may make roles with this boundary only,
# so nobody gets to more by making a role than the platform itself can do: no users, no keys of users, no policies, no other roles' trust.

resource "aws_iam_policy" "boundary" {
  # checkov:skip=CKV_AWS_286: A boundary grants nothing by itself; of IAM it lets through what Karpenter and load balancers need, by name.
  # checkov:skip=CKV_AWS_287: A boundary grants nothing by itself. Reading secrets is granted to one role, by name of the secret.
  # checkov:skip=CKV_AWS_288: A boundary grants nothing by itself. Reading objects is granted by bucket and prefix.
  # checkov:skip=CKV_AWS_289: A boundary grants nothing by itself; what grants is the policy of each role, which is checked.
  # checkov:skip=CKV_AWS_290: A boundary grants nothing by itself; what grants is the policy of each role, which is checked.
  # checkov:skip=CKV_AWS_355: A boundary grants nothing by itself; what grants is the policy of each role, which is checked.
  name        = "${var.prefix}-boundary"
  description = "Upper bound of all roles of ${var.prefix} deployments"

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "ServicesOfThePlatform"
        Effect = "Allow"
        Action = [
          "acm:DescribeCertificate", "acm:ListCertificates", "autoscaling:*", "cloudwatch:PutMetricData", "ec2:*", "ec2messages:*",
          "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer",
          "eks-auth:AssumeRoleForPodIdentity", "eks:Describe*", "elasticloadbalancing:*", "logs:CreateLogGroup", "logs:CreateLogStream",
          "logs:DescribeLogGroups", "logs:DescribeLogStreams", "logs:GetLogEvents", "logs:PutLogEvents", "logs:PutRetentionPolicy", "pricing:GetProducts",
          "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket", "s3:ListMultipartUploadParts",
          "s3:PutObject", "s3:PutObjectTagging", "sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage", "ssm:*", "ssmmessages:*",
          "wafv2:AssociateWebACL", "wafv2:DisassociateWebACL", "wafv2:GetWebACL", "wafv2:GetWebACLForResource",
        ]
        Resource = "*"
      },
      {
        Sid      = "SecretsOfDeployments"
        Effect   = "Allow"
        Action   = ["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]
        Resource = ["arn:${local.partition}:secretsmanager:*:${local.account_id}:secret:${var.prefix}-*", "arn:${local.partition}:secretsmanager:*:${local.account_id}:secret:rds!*"]
      },
      {
        Sid      = "KeysOfThisAccount"
        Effect   = "Allow"
        Action   = ["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ListGrants", "kms:ReEncrypt*"]
        Resource = "arn:${local.partition}:kms:*:${local.account_id}:key/*"
      },
      {
        Sid    = "NodesProfiles"
        Effect = "Allow"
        Action = [
          "iam:AddRoleToInstanceProfile", "iam:CreateInstanceProfile", "iam:DeleteInstanceProfile", "iam:GetInstanceProfile",
          "iam:ListInstanceProfiles", "iam:RemoveRoleFromInstanceProfile", "iam:TagInstanceProfile",
        ]
        Resource = "${local.iam}:instance-profile/*"
      },
      {
        Sid       = "NodesRole"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = "${local.iam}:role/${var.prefix}-*-karpenter-node"
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
      {
        Sid      = "RolesOfServices"
        Effect   = "Allow"
        Action   = "iam:CreateServiceLinkedRole"
        Resource = "${local.iam}:role/aws-service-role/elasticloadbalancing.amazonaws.com/*"
      },
    ]
  })
}
