mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::111122223333:oidc-provider/token.actions.githubusercontent.com" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::111122223333:policy/wmtp-boundary" }
  }
}

override_resource {
  target = module.state.aws_s3_bucket.this
  values = { arn = "arn:aws:s3:::S", id = "S" }
}

override_resource {
  target = module.state_key.aws_kms_key.this
  values = { arn = "arn:aws:kms:eu-central-1:111122223333:key/state" }
}

variables {
  region            = "eu-central-1"
  github_repository = "team/wmtp"
  route53_zone_ids  = ["Z1"]
}

run "ci_is_trusted_by_repository_branch_and_environment" {
  command = apply

  assert {
    condition = jsondecode(aws_iam_role.plan.assume_role_policy).Statement[0].Condition.StringEquals == {
      "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
      "token.actions.githubusercontent.com:sub" = ["repo:team/wmtp:pull_request", "repo:team/wmtp:ref:refs/heads/main"]
    }
    error_message = "Plan: pull requests and the branch, of this repository."
  }

  assert {
    condition = {
      for environment, role in aws_iam_role.apply : environment => jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"]
    } == { dev = ["repo:team/wmtp:environment:dev"], prod = ["repo:team/wmtp:environment:prod"] }
    error_message = "Apply: each role from its own protected environment only."
  }
}

run "a_plan_reads_no_data_and_writes_a_lock_only" {
  command = apply

  assert {
    condition = [
      for one in jsondecode(aws_iam_role_policy.plan.policy).Statement : one.Resource
      if one.Effect == "Allow" && strcontains(jsonencode(one.Action), "Put")
    ] == ["arn:aws:s3:::S/live/*.tflock"]
    error_message = "The lock file is all that a plan may write."
  }

  assert {
    condition = alltrue([
      for action in ["secretsmanager:GetSecretValue", "ssm:GetParameter", "logs:GetLogEvents"] : anytrue([
        for one in jsondecode(aws_iam_role_policy.plan.policy).Statement : one.Effect == "Deny" && contains(flatten([one.Action]), action)
      ])
    ])
    error_message = "A pull request must not read secrets, parameters or logs."
  }

  assert {
    condition = [
      for one in jsondecode(aws_iam_role_policy.plan.policy).Statement : one.NotResource if one.Sid == "NoObjects" && one.Effect == "Deny"
    ] == ["arn:aws:s3:::S/live/*"]
    error_message = "Of all objects a plan may read the state only."
  }
}

run "roles_are_made_within_the_boundary_only" {
  command = apply

  assert {
    condition = alltrue(flatten([
      for policy in aws_iam_role_policy.apply_iam : [
        for one in jsondecode(policy.policy).Statement :
        one.Condition.StringEquals["iam:PermissionsBoundary"] == "arn:aws:iam::111122223333:policy/wmtp-boundary"
        if anytrue([for action in ["iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy", "iam:PutRolePermissionsBoundary"] : contains(flatten([one.Action]), action)])
      ]
    ]))
    error_message = "A role without the boundary could do anything."
  }

  assert {
    condition = alltrue(flatten([
      for environment, policy in aws_iam_role_policy.apply_iam : [
        for one in jsondecode(policy.policy).Statement : [
          for resource in flatten([one.Resource]) :
          startswith(resource, "arn:aws:iam::111122223333:role/wmtp-${environment}-") || startswith(resource, "arn:aws:iam::111122223333:role/aws-service-role/")
        ]
      ]
    ]))
    error_message = "Roles of the deployment only: neither CI's own nor the other environment's."
  }

  assert {
    condition = alltrue([
      for one in jsondecode(aws_iam_policy.boundary.policy).Statement : alltrue([
        for action in flatten([one.Action]) : !contains(["*", "iam:*", "kms:*", "s3:*", "secretsmanager:*"], action) && !startswith(action, "iam:CreateRole") && !startswith(action, "iam:CreateUser")
      ])
    ]) && length(aws_iam_policy.boundary.policy) < 6144
    error_message = "The boundary lets nobody make users or roles, and fits into a policy."
  }
}

run "an_apply_reaches_its_own_deployment_and_no_secret" {
  command = apply

  assert {
    condition     = alltrue([for policy in aws_iam_role_policy.apply_resources : !strcontains(policy.policy, "GetSecretValue") && !strcontains(policy.policy, "secretsmanager:*")])
    error_message = "Who applies makes secrets and cannot read them."
  }

  assert {
    condition     = alltrue([for policy in aws_iam_role_policy.apply_resources : !strcontains(policy.policy, "s3:GetObject") && !strcontains(policy.policy, "s3:PutObject") && !strcontains(policy.policy, "s3:*")])
    error_message = "Who applies makes buckets and cannot reach what is in them."
  }

  assert {
    condition = [
      for one in jsondecode(aws_iam_role_policy.apply_resources["dev"].policy).Statement : [one.Action, one.Condition.StringNotEquals["aws:ResourceTag/deployment"]]
      if one.Effect == "Deny"
    ] == [[["acm:*", "ec2:*"], "wmtp-dev"]]
    error_message = "What has no name of ours is told apart by its tag."
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.apply_resources["dev"].policy, "wmtp-prod") && !strcontains(aws_iam_role_policy.apply_state["dev"].policy, "live/prod")
    error_message = "Dev's role must not reach prod."
  }

  assert {
    condition = alltrue([
      for environment in ["dev", "prod"] :
      length(aws_iam_role_policy.apply_state[environment].policy) + length(aws_iam_role_policy.apply_iam[environment].policy) + length(aws_iam_role_policy.apply_resources[environment].policy) < 10240
    ])
    error_message = "IAM takes 10240 characters of inline policies for a role."
  }
}

run "state_is_encrypted_with_its_own_key" {
  command = apply

  assert {
    condition     = strcontains(output.backend_config, "kms_key_id = \"arn:aws:kms:eu-central-1:111122223333:key/state\"") && strcontains(output.backend_config, "bucket     = \"S\"")
    error_message = "The backend's settings name bucket and key."
  }
}

run "any_repository_is_refused" {
  command = plan

  variables {
    github_repository = "team/*"
  }

  expect_failures = [var.github_repository]
}
