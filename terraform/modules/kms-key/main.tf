data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  region     = data.aws_region.current.region
  root       = "arn:${data.aws_partition.current.partition}:iam::${local.account_id}:root"

  use = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*"]

  # The account's root stands for IAM: it lets policies of this account say who, and is no login. It may look after the key, but
  # whoever uses it does so through one of the named services, so that a leaked role cannot decrypt a copied blob by itself.
  administration = {
    Sid       = "Administration"
    Effect    = "Allow"
    Principal = { AWS = local.root }
    Action = [
      "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:DeleteAlias", "kms:Describe*", "kms:Disable*", "kms:Enable*", "kms:Get*",
      "kms:List*", "kms:PutKeyPolicy", "kms:RevokeGrant", "kms:RotateKeyOnDemand", "kms:ScheduleKeyDeletion", "kms:TagResource",
      "kms:UntagResource", "kms:Update*",
    ]
    Resource = "*"
  }

  through_services = {
    Sid       = "UseThroughServices"
    Effect    = "Allow"
    Principal = { AWS = local.root }
    Action    = local.use
    Resource  = "*"
    Condition = {
      StringEquals = {
        "kms:CallerAccount" = local.account_id
        "kms:ViaService"    = [for service in var.via_services : "${service}.${local.region}.amazonaws.com"]
      }
    }
  }

  # Disks, databases and clusters hold a grant for as long as they live; only an AWS service can ask for one here.
  grants = {
    Sid       = "GrantsForServices"
    Effect    = "Allow"
    Principal = { AWS = local.root }
    Action    = "kms:CreateGrant"
    Resource  = "*"
    Condition = {
      StringEquals = { "kms:CallerAccount" = local.account_id }
      Bool         = { "kms:GrantIsForAWSResource" = "true" }
    }
  }

  logs = {
    Sid       = "CloudWatchLogs"
    Effect    = "Allow"
    Principal = { Service = "logs.${local.region}.amazonaws.com" }
    Action    = concat(local.use, ["kms:Describe*"])
    Resource  = "*"
    Condition = {
      ArnLike = {
        "kms:EncryptionContext:aws:logs:arn" = [
          for prefix in var.log_group_prefixes :
          "arn:${data.aws_partition.current.partition}:logs:${local.region}:${local.account_id}:log-group:${prefix}*"
        ]
      }
    }
  }

  linked_roles = [
    for service, role in var.service_linked_roles :
    "arn:${data.aws_partition.current.partition}:iam::${local.account_id}:role/aws-service-role/${service}/${role}"
  ]

  linked_use = {
    Sid       = "ServiceLinkedRoles"
    Effect    = "Allow"
    Principal = { AWS = local.linked_roles }
    Action    = concat(local.use, ["kms:DescribeKey"])
    Resource  = "*"
  }

  linked_grants = {
    Sid       = "GrantsForServiceLinkedRoles"
    Effect    = "Allow"
    Principal = { AWS = local.linked_roles }
    Action    = "kms:CreateGrant"
    Resource  = "*"
    Condition = { Bool = { "kms:GrantIsForAWSResource" = "true" } }
  }

  # Encoded one by one: the statements are of different shapes, and a list has one.
  statements = concat(
    [jsonencode(local.administration), jsonencode(local.grants)],
    length(var.via_services) > 0 ? [jsonencode(local.through_services)] : [],
    length(var.log_group_prefixes) > 0 ? [jsonencode(local.logs)] : [],
    length(var.service_linked_roles) > 0 ? [jsonencode(local.linked_use), jsonencode(local.linked_grants)] : [],
  )
}

resource "aws_kms_key" "this" {
  description             = var.description
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = "{\"Version\":\"2012-10-17\",\"Statement\":[${join(",", local.statements)}]}"
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}
