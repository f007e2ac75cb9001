data "aws_partition" "current" {}

locals {
  managed_policies = "arn:${data.aws_partition.current.partition}:iam::aws:policy"

  # Pods need both before a node becomes Ready: addresses, and the identity that the CNI asks for addresses with.
  before_nodes = {
    eks-pod-identity-agent = {}
    kube-proxy             = {}
    vpc-cni = {
      # NetworkPolicies are written in charts/; without this they are accepted and have no effect.
      enableNetworkPolicy = "true"
      env                 = { ENABLE_PREFIX_DELEGATION = "true" }
    }
  }

  on_nodes = {
    # Default tags do not reach volumes that a controller makes, and costs are told apart by tag.
    aws-ebs-csi-driver = { controller = { extraVolumeTags = var.tags } }
    coredns            = {}
    metrics-server     = {}
  }
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/eks/${var.name}/cluster"
  kms_key_id        = var.kms_key_arn
  retention_in_days = var.log_retention_days
}

resource "aws_iam_role" "cluster" {
  name                 = "${var.name}-cluster"
  permissions_boundary = var.permissions_boundary_arn

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "eks.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "${local.managed_policies}/AmazonEKSClusterPolicy"
}

resource "aws_eks_cluster" "this" {
  name                          = var.name
  version                       = var.kubernetes_version
  role_arn                      = aws_iam_role.cluster.arn
  bootstrap_self_managed_addons = false
  deletion_protection           = var.deletion_protection
  enabled_cluster_log_types     = ["api", "audit", "authenticator", "controllerManager", "scheduler"]

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = false
  }

  vpc_config {
    subnet_ids              = var.subnet_ids
    endpoint_private_access = true
    # checkov:skip=CKV_AWS_39: Off unless somebody names blocks, and 0.0.0.0/0 is refused by the variable.
    endpoint_public_access = length(var.public_access_cidrs) > 0
    # checkov:skip=CKV_AWS_38: The variable refuses 0.0.0.0/0.
    public_access_cidrs = length(var.public_access_cidrs) > 0 ? var.public_access_cidrs : null
  }

  encryption_config {
    resources = ["secrets"]

    provider {
      key_arn = var.kms_key_arn
    }
  }

  # Extended support costs six times as much and starts by itself otherwise.
  upgrade_policy {
    support_type = "STANDARD"
  }

  # The log group comes first, or EKS makes one itself: not encrypted, kept for ever.
  depends_on = [aws_cloudwatch_log_group.this, aws_iam_role_policy_attachment.cluster]
}

# Karpenter gives its nodes the security groups that carry this tag.
resource "aws_ec2_tag" "discovery" {
  resource_id = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  key         = "karpenter.sh/discovery"
  value       = var.name
}

resource "aws_eks_access_entry" "this" {
  for_each = var.access

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = each.value.principal_arn
  type          = "STANDARD"
}

resource "aws_eks_access_policy_association" "this" {
  for_each = var.access

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_eks_access_entry.this[each.key].principal_arn
  policy_arn    = "arn:${data.aws_partition.current.partition}:eks::aws:cluster-access-policy/${each.value.policy}"

  access_scope {
    type       = length(each.value.namespaces) > 0 ? "namespace" : "cluster"
    namespaces = length(each.value.namespaces) > 0 ? each.value.namespaces : null
  }
}

# The CNI's permissions are its own pods', not the nodes': changing node groups never takes its addresses away.
module "cni" {
  source = "../pod-identity"

  cluster_name             = aws_eks_cluster.this.name
  namespace                = "kube-system"
  service_account          = "aws-node"
  managed_policy_arns      = { cni = "${local.managed_policies}/AmazonEKS_CNI_Policy" }
  permissions_boundary_arn = var.permissions_boundary_arn
}

module "ebs_csi" {
  source = "../pod-identity"

  cluster_name             = aws_eks_cluster.this.name
  namespace                = "kube-system"
  service_account          = "ebs-csi-controller-sa"
  managed_policy_arns      = { ebs = "${local.managed_policies}/service-role/AmazonEBSCSIDriverPolicy" }
  permissions_boundary_arn = var.permissions_boundary_arn

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "EncryptedVolumes"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*", "kms:DescribeKey"]
        Resource = var.kms_key_arn
      },
      {
        Sid       = "GrantsForVolumes"
        Effect    = "Allow"
        Action    = "kms:CreateGrant"
        Resource  = var.kms_key_arn
        Condition = { Bool = { "kms:GrantIsForAWSResource" = "true" } }
      },
    ]
  })
}

resource "aws_eks_addon" "before_nodes" {
  for_each = local.before_nodes

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = lookup(var.addon_versions, each.key, null)
  configuration_values        = length(each.value) > 0 ? jsonencode(each.value) : null
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  depends_on = [module.cni]
}

# These wait for nodes. The node groups wait for `cluster_name` only, so the two do not wait for each other.
resource "aws_eks_addon" "on_nodes" {
  for_each = local.on_nodes

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = lookup(var.addon_versions, each.key, null)
  configuration_values        = length(each.value) > 0 ? jsonencode(each.value) : null
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  depends_on = [aws_eks_addon.before_nodes, module.ebs_csi]
}
