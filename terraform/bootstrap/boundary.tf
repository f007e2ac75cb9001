# The most that any role of a deployment can do, whatever its own policy says. Whoever applies an environment may make roles with that
# environment's boundary only: nobody gets to more by making a role than the platform itself can do there (no users, no keys of users,
# no policies, no other roles' trust), and a role made by dev's CI cannot reach prod.

locals {
  deployments = { for environment in var.environments : environment => "${var.prefix}-${environment}" }

  read_data_sources = length(var.data_buckets) == 0 ? [] : [{
    Sid    = "DataSources"
    Effect = "Allow"
    Action = ["s3:GetObject", "s3:ListBucket"]
    Resource = flatten([
      for bucket in sort(var.data_buckets) : ["arn:${local.partition}:s3:::${bucket}", "arn:${local.partition}:s3:::${bucket}/*"]
    ])
  }]
}

resource "aws_iam_policy" "boundary" {
  # checkov:skip=CKV_AWS_286: A boundary grants nothing by itself; of IAM it lets through what Karpenter and load balancers need, by name.
  # checkov:skip=CKV_AWS_287: A boundary grants nothing by itself. Reading secrets is granted to one role, by name of the secret.
  # checkov:skip=CKV_AWS_288: A boundary grants nothing by itself. Reading objects is granted by bucket and prefix.
  # checkov:skip=CKV_AWS_289: A boundary grants nothing by itself; what grants is the policy of each role, which is checked.
  # checkov:skip=CKV_AWS_290: A boundary grants nothing by itself; what grants is the policy of each role, which is checked.
  # checkov:skip=CKV_AWS_355: A boundary grants nothing by itself; what grants is the policy of each role, which is checked.
  for_each = local.deployments

  name        = "${each.value}-boundary"
  description = "Upper bound of all roles of ${each.value}"

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(local.read_data_sources, [
      {
        # What has names that AWS gives, or none. The next statement tells the deployments apart.
        Sid    = "ServicesOfThePlatform"
        Effect = "Allow"
        Action = [
          "acm:DescribeCertificate", "acm:ListCertificates", "autoscaling:*", "cloudwatch:PutMetricData", "ec2:*", "ec2messages:*",
          "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer",
          "elasticloadbalancing:*", "pricing:GetProducts", "ssm:DescribeAssociation", "ssm:DescribeDocument",
          "ssm:GetDeployablePatchSnapshotForInstance", "ssm:GetDocument", "ssm:GetManifest", "ssm:ListAssociations",
          "ssm:ListInstanceAssociations", "ssm:PutComplianceItems", "ssm:PutConfigurePackageResult", "ssm:PutInventory",
          "ssm:UpdateAssociationStatus", "ssm:UpdateInstanceAssociationStatus", "ssm:UpdateInstanceInformation", "ssmmessages:*",
          "wafv2:AssociateWebACL", "wafv2:DisassociateWebACL", "wafv2:GetWebACL", "wafv2:GetWebACLForResource",
        ]
        Resource = "*"
      },
      {
        Sid      = "NothingOfOtherDeployments"
        Effect   = "Deny"
        Action   = ["autoscaling:*", "ec2:*", "ecr:*", "elasticloadbalancing:*", "iam:*InstanceProfile"]
        Resource = "*"
        Condition = {
          Null            = { "aws:ResourceTag/deployment" = "false" }
          StringNotEquals = { "aws:ResourceTag/deployment" = each.value }
        }
      },
      {
        Sid      = "ParametersOfAws"
        Effect   = "Allow"
        Action   = "ssm:GetParameter*"
        Resource = "arn:${local.partition}:ssm:*::parameter/aws/service/*"
      },
      {
        Sid      = "OwnCluster"
        Effect   = "Allow"
        Action   = ["eks-auth:AssumeRoleForPodIdentity", "eks:Describe*"]
        Resource = "arn:${local.partition}:eks:*:${local.account_id}:cluster/${each.value}"
      },
      {
        # RDSOSMetrics is one group for all databases of the account, and holds their load only.
        Sid    = "OwnLogs"
        Effect = "Allow"
        Action = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:GetLogEvents", "logs:PutLogEvents", "logs:PutRetentionPolicy"]
        Resource = [
          for group in ["/aws/eks/${each.value}/*", "/aws/vpc/${each.value}/*", "/aws/rds/instance/${each.value}-*", "RDSOSMetrics*"] :
          "arn:${local.partition}:logs:*:${local.account_id}:log-group:${group}"
        ]
      },
      {
        Sid    = "OwnObjects"
        Effect = "Allow"
        Action = [
          "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket", "s3:ListMultipartUploadParts",
          "s3:PutObject", "s3:PutObjectTagging",
        ]
        Resource = ["arn:${local.partition}:s3:::${each.value}-*"]
      },
      {
        # RDS names its secrets by number; whose one is shows in its key.
        Sid    = "OwnSecrets"
        Effect = "Allow"
        Action = ["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]
        Resource = [
          for name in ["${each.value}/*", "rds!*"] : "arn:${local.partition}:secretsmanager:*:${local.account_id}:secret:${name}"
        ]
      },
      {
        Sid       = "OwnKeys"
        Effect    = "Allow"
        Action    = ["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ListGrants", "kms:ReEncrypt*"]
        Resource  = "arn:${local.partition}:kms:*:${local.account_id}:key/*"
        Condition = { StringEquals = { "aws:ResourceTag/deployment" = each.value } }
      },
      {
        Sid      = "OwnQueues"
        Effect   = "Allow"
        Action   = ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"]
        Resource = "arn:${local.partition}:sqs:*:${local.account_id}:${each.value}-*"
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
        Resource  = "${local.iam}:role/${each.value}-karpenter-node"
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
      {
        Sid      = "RolesOfServices"
        Effect   = "Allow"
        Action   = "iam:CreateServiceLinkedRole"
        Resource = "${local.iam}:role/aws-service-role/elasticloadbalancing.amazonaws.com/*"
      },
    ])
  })
}
