mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name                      = "wmtp-test"
  vpc_id                    = "vpc-1"
  subnet_ids                = ["subnet-a", "subnet-b", "subnet-c"]
  client_security_group_ids = { nodes = "sg-nodes" }
  instance_class            = "db.t4g.medium"
  multi_az                  = true
  backup_days               = 30
  kms_key_arn               = "arn:aws:kms:eu-central-1:111122223333:key/data"
  log_kms_key_arn           = "arn:aws:kms:eu-central-1:111122223333:key/cluster"
  permissions_boundary_arn  = "arn:aws:iam::111122223333:policy/wmtp-boundary"
}

run "a_zone_may_be_lost" {
  command = plan

  assert {
    condition     = aws_db_instance.this.multi_az && length(aws_db_subnet_group.this.subnet_ids) == 3
    error_message = "A standby in another zone."
  }
}

run "plain_connections_are_refused" {
  command = apply

  assert {
    condition     = { for one in aws_db_parameter_group.this.parameter : one.name => one.value }["rds.force_ssl"] == "1"
    error_message = "The server must refuse connections without TLS."
  }

  assert {
    condition     = aws_db_instance.this.parameter_group_name == aws_db_parameter_group.this.name && aws_db_parameter_group.this.family == "postgres17"
    error_message = "The instance uses these parameters, and they are of its engine's family."
  }
}

run "everything_at_rest_is_encrypted_with_our_key" {
  command = plan

  assert {
    condition = (
      aws_db_instance.this.storage_encrypted && aws_db_instance.this.kms_key_id == var.kms_key_arn &&
      aws_db_instance.this.performance_insights_kms_key_id == var.kms_key_arn &&
      alltrue([for group in aws_cloudwatch_log_group.this : group.kms_key_id == var.log_kms_key_arn && group.retention_in_days >= 365])
    )
    error_message = "Disk, performance data and logs."
  }
}

run "the_master_password_is_in_no_state" {
  command = plan

  assert {
    condition = (
      aws_db_instance.this.manage_master_user_password && aws_db_instance.this.password == null &&
      aws_db_instance.this.master_user_secret_kms_key_id == var.kms_key_arn
    )
    error_message = "RDS keeps the password in Secrets Manager, under our key."
  }
}

run "only_nodes_connect" {
  command = plan

  assert {
    condition = (
      !aws_db_instance.this.publicly_accessible && length(aws_vpc_security_group_ingress_rule.this) == 1 &&
      aws_vpc_security_group_ingress_rule.this["nodes"].referenced_security_group_id == "sg-nodes" &&
      aws_vpc_security_group_ingress_rule.this["nodes"].cidr_ipv4 == null && aws_vpc_security_group_ingress_rule.this["nodes"].to_port == 5432
    )
    error_message = "PostgreSQL from the nodes' security group, and from no address."
  }
}

run "what_was_lost_can_be_brought_back" {
  command = plan

  assert {
    condition = (
      aws_db_instance.this.backup_retention_period == 30 && aws_db_instance.this.deletion_protection &&
      !aws_db_instance.this.skip_final_snapshot && !aws_db_instance.this.delete_automated_backups
    )
    error_message = "Backups, deletion protection, and a last snapshot."
  }
}

run "who_did_what_is_logged_without_users_data" {
  command = plan

  assert {
    condition = (
      join(",", sort(aws_db_instance.this.enabled_cloudwatch_logs_exports)) == "postgresql,upgrade" &&
      { for one in aws_db_parameter_group.this.parameter : one.name => one.value }["log_connections"] == "1" &&
      { for one in aws_db_parameter_group.this.parameter : one.name => one.value }["log_parameter_max_length"] == "0"
    )
    error_message = "Connections are logged, parameters of statements are not."
  }

  assert {
    condition     = aws_iam_role.monitoring.permissions_boundary == var.permissions_boundary_arn
    error_message = "Every role has the boundary."
  }
}

run "backups_of_a_day_are_refused" {
  command = plan

  variables {
    backup_days = 1
  }

  expect_failures = [var.backup_days]
}

run "an_old_major_version_is_refused" {
  command = plan

  variables {
    engine_version = "12"
  }

  expect_failures = [var.engine_version]
}
