# CI has no keys: GitHub signs who runs, AWS checks it, and the credentials end with the job.

resource "aws_iam_openid_connect_provider" "github" {
  count = var.github_oidc_provider_arn == null ? 1 : 0

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

locals {
  oidc_arn = coalesce(var.github_oidc_provider_arn, one(aws_iam_openid_connect_provider.github[*].arn))

  trust = {
    for role, subjects in merge(
      { plan = ["repo:${var.github_repository}:pull_request", "repo:${var.github_repository}:ref:refs/heads/${var.github_branch}"] },
      { for environment in var.environments : environment => ["repo:${var.github_repository}:environment:${environment}"] },
      ) : role => jsonencode({
        Version = "2012-10-17"
        Statement = [{
          Effect    = "Allow"
          Principal = { Federated = local.oidc_arn }
          Action    = "sts:AssumeRoleWithWebIdentity"
          Condition = {
            StringEquals = {
              "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
              "token.actions.githubusercontent.com:sub" = subjects
            }
          }
        }]
    })
  }

  use_state_key = {
    Sid       = "StateKey"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = module.state_key.arn
    Condition = { StringEquals = { "kms:ViaService" = "s3.${var.region}.amazonaws.com" } }
  }
}

# Plan: reads the account's configuration, and none of its data

resource "aws_iam_role" "plan" {
  name                 = "${var.prefix}-ci-plan"
  description          = "terraform plan of pull requests and of ${var.github_branch}"
  max_session_duration = 3600
  assume_role_policy   = local.trust["plan"]
}

resource "aws_iam_role_policy_attachment" "plan" {
  role       = aws_iam_role.plan.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/ReadOnlyAccess"
}

resource "aws_iam_role_policy" "plan" {
  name = "state-and-no-data"
  role = aws_iam_role.plan.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Sid = "ReadState", Effect = "Allow", Action = "s3:GetObject", Resource = "${module.state.arn}/live/*" },
      { Sid = "Lock", Effect = "Allow", Action = ["s3:PutObject", "s3:DeleteObject"], Resource = "${module.state.arn}/live/*.tflock" },
      local.use_state_key,
      {
        Sid         = "NoObjects"
        Effect      = "Deny"
        Action      = ["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTorrent"]
        NotResource = "${module.state.arn}/live/*"
      },
      {
        Sid    = "NoOtherData"
        Effect = "Deny"
        Action = [
          "ec2:GetConsoleOutput", "ec2:GetPasswordData", "ecr:GetDownloadUrlForLayer", "logs:FilterLogEvents", "logs:GetLogEvents",
          "logs:GetLogRecord", "logs:GetQueryResults", "logs:StartLiveTail", "logs:StartQuery", "rds:DownloadDBLogFilePortion",
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "sqs:ReceiveMessage", "ssm:GetParameter", "ssm:GetParameters",
          "ssm:GetParametersByPath", "ssm:GetParameterHistory",
        ]
        Resource = "*"
      },
    ]
  })
}

# Apply: one role for each environment, which GitHub gives after its reviewers agreed. It names that deployment's resources only, and so
# does the boundary of the roles that it makes. What it shares with the others is the account: quotas, and whatever carries neither
# name nor tag. Environments that must not trust one another at all belong into accounts of their own.

resource "aws_iam_role" "apply" {
  for_each = local.deployments

  name                 = "${var.prefix}-ci-apply-${each.key}"
  description          = "terraform apply of ${each.value}"
  max_session_duration = 7200
  assume_role_policy   = local.trust[each.key]
}

resource "aws_iam_role_policy" "apply_state" {
  for_each = local.deployments

  name = "state"
  role = aws_iam_role.apply[each.key].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Sid = "State", Effect = "Allow", Action = ["s3:GetObject", "s3:PutObject"], Resource = "${module.state.arn}/live/${each.key}.tfstate" },
      { Sid = "Lock", Effect = "Allow", Action = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], Resource = "${module.state.arn}/live/${each.key}.tfstate.tflock" },
      { Sid = "List", Effect = "Allow", Action = "s3:ListBucket", Resource = module.state.arn },
      local.use_state_key,
    ]
  })
}

resource "aws_iam_role_policy" "apply_iam" {
  for_each = local.deployments

  name = "roles"
  role = aws_iam_role.apply[each.key].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "MakeRolesWithinTheBoundary"
        Effect = "Allow"
        Action = [
          "iam:AttachRolePolicy", "iam:CreateRole", "iam:DeleteRolePolicy", "iam:DetachRolePolicy", "iam:PutRolePermissionsBoundary",
          "iam:PutRolePolicy",
        ]
        Resource  = "${local.iam}:role/${each.value}-*"
        Condition = { StringEquals = { "iam:PermissionsBoundary" = "${local.iam}:policy/${aws_iam_policy.boundary[each.key].name}" } }
      },
      {
        Sid    = "KeepOwnRoles"
        Effect = "Allow"
        Action = [
          "iam:DeleteRole", "iam:GetRole", "iam:GetRolePolicy", "iam:ListAttachedRolePolicies", "iam:ListInstanceProfilesForRole",
          "iam:ListRolePolicies", "iam:ListRoleTags", "iam:TagRole", "iam:UntagRole", "iam:UpdateAssumeRolePolicy", "iam:UpdateRole",
        ]
        Resource = "${local.iam}:role/${each.value}-*"
      },
      {
        Sid      = "GiveRolesToServices"
        Effect   = "Allow"
        Action   = "iam:PassRole"
        Resource = "${local.iam}:role/${each.value}-*"
        Condition = {
          StringEquals = {
            "iam:PassedToService" = [
              "ec2.amazonaws.com", "eks.amazonaws.com", "monitoring.rds.amazonaws.com", "pods.eks.amazonaws.com", "vpc-flow-logs.amazonaws.com",
            ]
          }
        }
      },
      {
        Sid      = "LookAtRolesOfServices"
        Effect   = "Allow"
        Action   = ["iam:GetRole", "iam:CreateServiceLinkedRole"]
        Resource = "${local.iam}:role/aws-service-role/*"
      },
    ]
  })
}

resource "aws_iam_role_policy" "apply_resources" {
  # checkov:skip=CKV_AWS_290: Network, certificates and prices have names that AWS gives or none at all; those are bound to the region or to the deployment's tag.
  # checkov:skip=CKV_AWS_355: What AWS names is bound to region or tag; what has a name of ours is bound to it.
  # checkov:skip=CKV_AWS_289: It manages access to the deployment's own buckets, keys and images; roles are in `apply_iam`, within the boundary.
  for_each = local.deployments

  name = "resources"
  role = aws_iam_role.apply[each.key].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        # A network is thirty kinds of things, none of which has a name of ours before it is made.
        Sid       = "NetworkOfThisRegion"
        Effect    = "Allow"
        Action    = ["acm:*", "ec2:*", "logs:DescribeLogGroups", "eks:Describe*", "eks:List*", "rds:Describe*", "kms:ListAliases", "sts:GetCallerIdentity"]
        Resource  = "*"
        Condition = { StringEquals = { "aws:RequestedRegion" = var.region } }
      },
      {
        Sid      = "NothingOfOtherDeployments"
        Effect   = "Deny"
        Action   = ["acm:*", "ec2:*"]
        Resource = "*"
        Condition = {
          Null            = { "aws:ResourceTag/deployment" = "false" }
          StringNotEquals = { "aws:ResourceTag/deployment" = each.value }
        }
      },
      {
        Sid    = "NamedOfThisDeployment"
        Effect = "Allow"
        Action = ["ecr:*", "eks:*", "events:*", "logs:*", "rds:*", "sqs:*"]
        Resource = concat(
          ["arn:${local.partition}:ecr:${var.region}:${local.account_id}:repository/${each.value}/*"],
          ["arn:${local.partition}:eks:${var.region}:${local.account_id}:cluster/${each.value}"],
          [for kind in ["access-entry", "addon", "nodegroup", "podidentityassociation"] : "arn:${local.partition}:eks:${var.region}:${local.account_id}:${kind}/${each.value}/*"],
          ["arn:${local.partition}:events:${var.region}:${local.account_id}:rule/${each.value}-*"],
          [for group in ["eks/${each.value}/*", "rds/instance/${each.value}-*", "vpc/${each.value}/*"] : "arn:${local.partition}:logs:${var.region}:${local.account_id}:log-group:/aws/${group}"],
          ["arn:${local.partition}:rds:${var.region}:${local.account_id}:og:default*"],
          [for kind in ["db", "pg", "snapshot", "subgrp"] : "arn:${local.partition}:rds:${var.region}:${local.account_id}:${kind}:${each.value}-*"],
          ["arn:${local.partition}:sqs:${var.region}:${local.account_id}:${each.value}-*"],
        )
      },
      {
        # Buckets, and no objects in them.
        Sid    = "Buckets"
        Effect = "Allow"
        Action = [
          "s3:CreateBucket", "s3:DeleteBucket", "s3:DeleteBucketPolicy", "s3:GetAccelerateConfiguration", "s3:GetBucket*", "s3:GetEncryptionConfiguration",
          "s3:GetLifecycleConfiguration", "s3:GetReplicationConfiguration", "s3:ListBucket", "s3:ListTagsForResource", "s3:PutBucket*",
          "s3:PutEncryptionConfiguration", "s3:PutLifecycleConfiguration", "s3:TagResource", "s3:UntagResource",
        ]
        Resource = "arn:${local.partition}:s3:::${each.value}-*"
      },
      {
        # Secrets are made and replaced, never read.
        Sid    = "Secrets"
        Effect = "Allow"
        Action = [
          "secretsmanager:CreateSecret", "secretsmanager:DeleteSecret", "secretsmanager:DescribeSecret", "secretsmanager:GetResourcePolicy",
          "secretsmanager:ListSecretVersionIds", "secretsmanager:PutSecretValue", "secretsmanager:RestoreSecret", "secretsmanager:TagResource",
          "secretsmanager:UntagResource", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage", "secretsmanager:RotateSecret",
        ]
        Resource = "arn:${local.partition}:secretsmanager:${var.region}:${local.account_id}:secret:${each.value}/*"
      },
      {
        # RDS makes its master secret as whoever makes the database; it names it by number, so only making is allowed.
        Sid      = "MasterSecret"
        Effect   = "Allow"
        Action   = ["secretsmanager:CreateSecret", "secretsmanager:DescribeSecret", "secretsmanager:TagResource"]
        Resource = "arn:${local.partition}:secretsmanager:${var.region}:${local.account_id}:secret:rds!*"
      },
      {
        Sid       = "MakeKeys"
        Effect    = "Allow"
        Action    = ["kms:CreateKey", "kms:TagResource"]
        Resource  = "*"
        Condition = { StringEquals = { "aws:RequestTag/deployment" = each.value } }
      },
      {
        Sid    = "KeepOwnKeys"
        Effect = "Allow"
        Action = [
          "kms:CreateAlias", "kms:CreateGrant", "kms:Decrypt", "kms:DeleteAlias", "kms:DescribeKey", "kms:EnableKeyRotation", "kms:GenerateDataKey*",
          "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:UpdateKeyDescription",
        ]
        Resource  = "arn:${local.partition}:kms:${var.region}:${local.account_id}:key/*"
        Condition = { StringEquals = { "aws:ResourceTag/deployment" = each.value } }
      },
      {
        Sid      = "KeepOwnAliases"
        Effect   = "Allow"
        Action   = ["kms:CreateAlias", "kms:DeleteAlias", "kms:UpdateAlias"]
        Resource = "arn:${local.partition}:kms:${var.region}:${local.account_id}:alias/${each.value}-*"
      },
      {
        Sid      = "Records"
        Effect   = "Allow"
        Action   = ["route53:ChangeResourceRecordSets", "route53:GetHostedZone", "route53:ListResourceRecordSets"]
        Resource = [for zone in var.route53_zone_ids : "arn:${local.partition}:route53:::hostedzone/${zone}"]
      },
      {
        Sid      = "Changes"
        Effect   = "Allow"
        Action   = "route53:GetChange"
        Resource = "arn:${local.partition}:route53:::change/*"
      },
      {
        Sid    = "Money"
        Effect = "Allow"
        Action = [
          "budgets:ModifyBudget", "budgets:ViewBudget", "budgets:TagResource", "budgets:ListTagsForResource", "ce:CreateAnomalyMonitor",
          "ce:CreateAnomalySubscription", "ce:DeleteAnomalyMonitor", "ce:DeleteAnomalySubscription", "ce:GetAnomalyMonitors",
          "ce:GetAnomalySubscriptions", "ce:ListTagsForResource", "ce:TagResource", "ce:UpdateAnomalyMonitor", "ce:UpdateAnomalySubscription",
        ]
        Resource = "*"
      },
    ]
  })
}
