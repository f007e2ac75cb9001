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
  data_buckets      = ["team-data"]
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
      for environment, policy in aws_iam_role_policy.apply_iam : [
        for one in jsondecode(policy.policy).Statement :
        one.Condition.StringEquals["iam:PermissionsBoundary"] == "arn:aws:iam::111122223333:policy/wmtp-${environment}-boundary"
        if anytrue([for action in ["iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy", "iam:PutRolePermissionsBoundary"] : contains(flatten([one.Action]), action)])
      ]
    ]))
    error_message = "A role without the boundary could do anything, and one with another environment's could reach that one."
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
    condition = alltrue(flatten([
      for boundary in aws_iam_policy.boundary : [
        for one in jsondecode(boundary.policy).Statement : [
          for action in flatten([one.Action]) :
          !contains(["*", "iam:*", "kms:*", "s3:*", "secretsmanager:*", "ssm:*"], action) && !startswith(action, "iam:CreateRole") && !startswith(action, "iam:CreateUser")
        ] if one.Effect == "Allow"
      ]
    ]))
    error_message = "The boundary lets nobody make users or roles, and nobody read all parameters or enter other nodes."
  }

  assert {
    condition     = alltrue([for boundary in aws_iam_policy.boundary : length(boundary.policy) < 6144])
    error_message = "A policy holds 6144 characters."
  }
}

run "a_boundary_ends_at_its_own_deployment" {
  command = apply

  # What has a name of ours is named; a key tells whose it is, and so whose a secret of RDS is.
  assert {
    condition = alltrue(flatten([
      for environment, boundary in aws_iam_policy.boundary : [
        for one in jsondecode(boundary.policy).Statement : [
          for resource in flatten([one.Resource]) :
          length(regexall("[:/]wmtp-${environment}([-/]|$)", resource)) > 0 ||
          contains(["team-data", "team-data/*"], trimprefix(resource, "arn:aws:s3:::")) ||
          endswith(resource, ":secret:rds!*") || endswith(resource, ":log-group:RDSOSMetrics*") ||
          jsonencode(try(one.Condition, null)) == jsonencode({ StringEquals = { "aws:ResourceTag/deployment" = "wmtp-${environment}" } })
        ] if one.Effect == "Allow" && length(regexall("\"(eks|eks-auth|kms|logs|s3|secretsmanager|sqs):|PassRole", jsonencode(one.Action))) > 0
      ]
    ]))
    error_message = "A role of one environment must not reach objects, secrets, keys, logs, queues, nodes' roles or the cluster of another."
  }

  assert {
    condition = alltrue(flatten([
      for environment, boundary in aws_iam_policy.boundary : [
        for one in jsondecode(boundary.policy).Statement : one.Condition == {
          Null            = { "aws:ResourceTag/deployment" = "false" }
          StringNotEquals = { "aws:ResourceTag/deployment" = "wmtp-${environment}" }
        } && alltrue([for service in ["autoscaling", "ec2", "ecr", "elasticloadbalancing"] : contains(one.Action, "${service}:*")])
        if one.Effect == "Deny"
      ]
    ])) && alltrue([for boundary in aws_iam_policy.boundary : strcontains(boundary.policy, "\"Deny\"")])
    error_message = "What has no name of ours is told apart by its tag."
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

  # `wmtp-dev*` would be `wmtp-dev2` too.
  assert {
    condition = alltrue(flatten([
      for one in jsondecode(aws_iam_role_policy.apply_resources["dev"].policy).Statement : [
        for resource in flatten([one.Resource]) : !strcontains(resource, "wmtp-dev*")
      ]
    ]))
    error_message = "Names end where the deployment's name ends."
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

run "an_environment_named_as_bootstraps_own_is_refused" {
  command = plan

  variables {
    environments = ["dev", "state"]
  }

  expect_failures = [var.environments]
}

run "all_buckets_are_refused_as_data" {
  command = plan

  variables {
    data_buckets = ["team-*"]
  }

  expect_failures = [var.data_buckets]
}

run "any_repository_is_refused" {
  command = plan

  variables {
    github_repository = "team/*"
  }

  expect_failures = [var.github_repository]
}
