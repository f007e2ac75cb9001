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
}

variables {
  name                 = "wmtp-test-data"
  description          = "Test."
  via_services         = ["s3"]
  log_group_prefixes   = ["/aws/eks/wmtp-test/"]
  service_linked_roles = { "autoscaling.amazonaws.com" = "AWSServiceRoleForAutoScaling" }
}

run "key_rotates" {
  command = plan

  assert {
    condition     = aws_kms_key.this.enable_key_rotation && aws_kms_key.this.deletion_window_in_days == 30
    error_message = "The key must rotate, and give a month to take a deletion back."
  }
}

run "nobody_decrypts_past_a_service" {
  command = plan

  assert {
    condition = alltrue([
      for one in jsondecode(aws_kms_key.this.policy).Statement :
      one.Condition.StringEquals["kms:ViaService"] == ["s3.eu-central-1.amazonaws.com"]
      if strcontains(jsonencode(one.Action), "Decrypt") && try(endswith(one.Principal.AWS, ":root"), false)
    ])
    error_message = "The account may use the key only through the named services."
  }

  assert {
    condition = alltrue([
      for one in jsondecode(aws_kms_key.this.policy).Statement :
      !strcontains(jsonencode(one.Action), "kms:*") && !contains(flatten([values(one.Principal)]), "*")
    ])
    error_message = "No kms:* and no principal *."
  }
}

run "grants_are_for_services_only" {
  command = plan

  assert {
    condition = alltrue([
      for one in jsondecode(aws_kms_key.this.policy).Statement :
      one.Condition.Bool["kms:GrantIsForAWSResource"] == "true"
      if one.Action == "kms:CreateGrant"
    ])
    error_message = "A grant by hand would pass the key on."
  }
}

run "logs_use_the_key_for_their_own_groups" {
  command = plan

  assert {
    condition = [
      for one in jsondecode(aws_kms_key.this.policy).Statement :
      one.Condition.ArnLike["kms:EncryptionContext:aws:logs:arn"] if one.Sid == "CloudWatchLogs"
    ] == [["arn:aws:logs:eu-central-1:111122223333:log-group:/aws/eks/wmtp-test/*"]]
    error_message = "CloudWatch may use the key for the named log groups only."
  }
}

run "no_service_is_let_in_unasked" {
  command = plan

  variables {
    via_services         = []
    log_group_prefixes   = []
    service_linked_roles = {}
  }

  assert {
    condition     = [for one in jsondecode(aws_kms_key.this.policy).Statement : one.Sid] == ["Administration", "GrantsForServices"]
    error_message = "Without services there must be no statement that lets one in."
  }
}

run "every_log_group_is_refused" {
  command = plan

  variables {
    log_group_prefixes = ["/"]
  }

  expect_failures = [var.log_group_prefixes]
}
