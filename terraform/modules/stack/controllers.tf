# Roles of the controllers that charts/upstream installs, besides Karpenter's.

locals {
  elb = "arn:${local.partition}:elasticloadbalancing:${local.region}:${local.account_id}"
  ec2 = "arn:${local.partition}:ec2:${local.region}:${local.account_id}"

  of_this_cluster = { StringEquals = { "aws:ResourceTag/elbv2.k8s.aws/cluster" = var.name } }
}

# Narrower than the policy that its makers publish: each write is tied to what carries this cluster's tag, and there are no
# statements for Cognito, Shield or classic WAF, which the charts do not use.
module "load_balancer_controller" {
  source = "../pod-identity"

  cluster_name             = module.eks.cluster_name
  namespace                = "kube-system"
  service_account          = "aws-load-balancer-controller"
  permissions_boundary_arn = var.permissions_boundary_arn

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        # Descriptions know no resource.
        Sid    = "Look"
        Effect = "Allow"
        Action = [
          "acm:DescribeCertificate", "acm:ListCertificates", "ec2:DescribeAccountAttributes", "ec2:DescribeAddresses",
          "ec2:DescribeAvailabilityZones", "ec2:DescribeInstances", "ec2:DescribeInternetGateways", "ec2:DescribeNetworkInterfaces",
          "ec2:DescribeRouteTables", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:DescribeTags", "ec2:DescribeVpcPeeringConnections",
          "ec2:DescribeVpcs", "ec2:GetSecurityGroupsForVpc", "elasticloadbalancing:DescribeCapacityReservation",
          "elasticloadbalancing:DescribeListenerAttributes", "elasticloadbalancing:DescribeListenerCertificates",
          "elasticloadbalancing:DescribeListeners", "elasticloadbalancing:DescribeLoadBalancerAttributes",
          "elasticloadbalancing:DescribeLoadBalancers", "elasticloadbalancing:DescribeRules", "elasticloadbalancing:DescribeSSLPolicies",
          "elasticloadbalancing:DescribeTags", "elasticloadbalancing:DescribeTargetGroupAttributes", "elasticloadbalancing:DescribeTargetGroups",
          "elasticloadbalancing:DescribeTargetHealth", "elasticloadbalancing:DescribeTrustStores",
        ]
        Resource  = "*"
        Condition = { StringEquals = { "aws:RequestedRegion" = local.region } }
      },
      {
        Sid       = "FirstLoadBalancerOfTheAccount"
        Effect    = "Allow"
        Action    = "iam:CreateServiceLinkedRole"
        Resource  = "arn:${local.partition}:iam::${local.account_id}:role/aws-service-role/elasticloadbalancing.amazonaws.com/*"
        Condition = { StringEquals = { "iam:AWSServiceName" = "elasticloadbalancing.amazonaws.com" } }
      },
      {
        Sid      = "MakeSecurityGroupsInThisNetwork"
        Effect   = "Allow"
        Action   = "ec2:CreateSecurityGroup"
        Resource = "${local.ec2}:vpc/${module.network.vpc_id}"
      },
      {
        Sid       = "MakeSecurityGroups"
        Effect    = "Allow"
        Action    = "ec2:CreateSecurityGroup"
        Resource  = "${local.ec2}:security-group/*"
        Condition = { StringEquals = { "aws:RequestTag/elbv2.k8s.aws/cluster" = var.name } }
      },
      {
        Sid      = "TagSecurityGroups"
        Effect   = "Allow"
        Action   = "ec2:CreateTags"
        Resource = "${local.ec2}:security-group/*"
        Condition = {
          StringEquals = {
            "aws:RequestTag/elbv2.k8s.aws/cluster" = var.name
            "ec2:CreateAction"                     = "CreateSecurityGroup"
          }
        }
      },
      {
        Sid       = "KeepOwnSecurityGroups"
        Effect    = "Allow"
        Action    = ["ec2:AuthorizeSecurityGroupIngress", "ec2:CreateTags", "ec2:DeleteSecurityGroup", "ec2:DeleteTags", "ec2:RevokeSecurityGroupIngress"]
        Resource  = "${local.ec2}:security-group/*"
        Condition = local.of_this_cluster
      },
      {
        Sid      = "LetLoadBalancersReachPods"
        Effect   = "Allow"
        Action   = ["ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress"]
        Resource = "${local.ec2}:security-group/${module.eks.security_group_id}"
      },
      {
        Sid       = "Make"
        Effect    = "Allow"
        Action    = ["elasticloadbalancing:CreateLoadBalancer", "elasticloadbalancing:CreateTargetGroup"]
        Resource  = ["${local.elb}:loadbalancer/*", "${local.elb}:targetgroup/*"]
        Condition = { StringEquals = { "aws:RequestTag/elbv2.k8s.aws/cluster" = var.name } }
      },
      {
        Sid    = "TagWhatIsMade"
        Effect = "Allow"
        Action = "elasticloadbalancing:AddTags"
        Resource = [
          "${local.elb}:loadbalancer/*", "${local.elb}:targetgroup/*", "${local.elb}:listener/*", "${local.elb}:listener-rule/*",
        ]
        Condition = {
          StringEquals = {
            "aws:RequestTag/elbv2.k8s.aws/cluster" = var.name
            "elasticloadbalancing:CreateAction"    = ["CreateLoadBalancer", "CreateTargetGroup", "CreateListener", "CreateRule"]
          }
        }
      },
      {
        Sid    = "KeepOwn"
        Effect = "Allow"
        Action = [
          "elasticloadbalancing:AddListenerCertificates", "elasticloadbalancing:AddTags", "elasticloadbalancing:CreateListener",
          "elasticloadbalancing:CreateRule", "elasticloadbalancing:DeleteListener", "elasticloadbalancing:DeleteLoadBalancer",
          "elasticloadbalancing:DeleteRule", "elasticloadbalancing:DeleteTargetGroup", "elasticloadbalancing:DeregisterTargets",
          "elasticloadbalancing:ModifyListener", "elasticloadbalancing:ModifyListenerAttributes", "elasticloadbalancing:ModifyLoadBalancerAttributes",
          "elasticloadbalancing:ModifyRule", "elasticloadbalancing:ModifyTargetGroup", "elasticloadbalancing:ModifyTargetGroupAttributes",
          "elasticloadbalancing:RegisterTargets", "elasticloadbalancing:RemoveListenerCertificates", "elasticloadbalancing:RemoveTags",
          "elasticloadbalancing:SetIpAddressType", "elasticloadbalancing:SetRulePriorities", "elasticloadbalancing:SetSecurityGroups",
          "elasticloadbalancing:SetSubnets", "elasticloadbalancing:SetWebAcl",
        ]
        Resource = [
          "${local.elb}:loadbalancer/*", "${local.elb}:targetgroup/*", "${local.elb}:listener/*", "${local.elb}:listener-rule/*",
        ]
        Condition = local.of_this_cluster
      },
      {
        Sid    = "Firewall"
        Effect = "Allow"
        Action = ["wafv2:AssociateWebACL", "wafv2:DisassociateWebACL", "wafv2:GetWebACL", "wafv2:GetWebACLForResource"]
        Resource = [
          "arn:${local.partition}:wafv2:${local.region}:${local.account_id}:regional/webacl/*", "${local.elb}:loadbalancer/app/*",
        ]
      },
    ]
  })
}

module "external_secrets" {
  source = "../pod-identity"

  cluster_name             = module.eks.cluster_name
  namespace                = "external-secrets"
  service_account          = "external-secrets"
  permissions_boundary_arn = var.permissions_boundary_arn

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "ReadSecretsOfThisDeployment"
        Effect = "Allow"
        Action = ["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]
        Resource = [
          "arn:${local.partition}:secretsmanager:${local.region}:${local.account_id}:secret:${var.name}/*", module.database.master_secret_arn,
        ]
      },
      {
        Sid       = "UseKeyThroughSecretsManager"
        Effect    = "Allow"
        Action    = "kms:Decrypt"
        Resource  = module.data_key.arn
        Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${local.region}.amazonaws.com" } }
      },
    ]
  })
}
