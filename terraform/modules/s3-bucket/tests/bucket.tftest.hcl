mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::wmtp-test-artifacts-111122223333" }
  }
}

variables {
  name        = "wmtp-test-artifacts-111122223333"
  kms_key_arn = "arn:aws:kms:eu-central-1:111122223333:key/data"
  access_log  = { bucket = "wmtp-test-access-logs-111122223333" }
  archives = {
    checkpoints = {
      prefix          = "wmtp/"
      tags            = { wmtp = "checkpoint" }
      days            = 30
      noncurrent_days = 3
    }
  }
}

run "nothing_is_public" {
  command = apply

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls,
      aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls,
      aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "All four blocks of public access must be on."
  }

  assert {
    condition     = one(aws_s3_bucket_ownership_controls.this.rule).object_ownership == "BucketOwnerEnforced"
    error_message = "ACLs must be off."
  }

  assert {
    condition = alltrue([
      for one in jsondecode(aws_s3_bucket_policy.this.policy).Statement : one.Effect == "Deny" if one.Principal == "*"
    ])
    error_message = "A policy that allows everybody is public."
  }
}

run "deleted_objects_can_be_brought_back" {
  command = apply

  assert {
    condition     = one(aws_s3_bucket_versioning.this.versioning_configuration).status == "Enabled" && !aws_s3_bucket.this.force_destroy
    error_message = "The bucket must keep versions, and go only when it is empty."
  }
}

run "objects_are_encrypted_with_our_key" {
  command = apply

  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_server_side_encryption_configuration.this.rule :
      one(rule.apply_server_side_encryption_by_default).sse_algorithm == "aws:kms" &&
      one(rule.apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn && rule.bucket_key_enabled
    ])
    error_message = "The default encryption must be our key, with a bucket key."
  }

  assert {
    condition = {
      for one in jsondecode(aws_s3_bucket_policy.this.policy).Statement : one.Sid => [one.Effect, one.Action, one.Condition.StringNotEquals]
      if startswith(one.Sid, "NoOther")
      } == {
      NoOtherEncryption = ["Deny", "s3:PutObject", { "s3:x-amz-server-side-encryption" = "aws:kms" }]
      NoOtherKey        = ["Deny", "s3:PutObject", { "s3:x-amz-server-side-encryption-aws-kms-key-id" = "arn:aws:kms:eu-central-1:111122223333:key/data" }]
    }
    error_message = "Another encryption or another key must be refused."
  }

  assert {
    condition = alltrue([
      for one in jsondecode(aws_s3_bucket_policy.this.policy).Statement : one.Condition.Null == { for key, value in one.Condition.StringNotEquals : key => "false" }
      if startswith(one.Sid, "NoOther")
    ])
    error_message = "An upload that says nothing of encryption takes the bucket's default, and must not be refused."
  }
}

run "only_tls_1_2_and_later" {
  command = apply

  assert {
    condition = {
      for one in jsondecode(aws_s3_bucket_policy.this.policy).Statement : one.Sid => [one.Effect, one.Action, one.Condition, length(one.Resource)]
      if startswith(one.Sid, "Tls")
      } == {
      TlsOnly           = ["Deny", "s3:*", { Bool = { "aws:SecureTransport" = "false" } }, 2]
      TlsOneTwoAndLater = ["Deny", "s3:*", { NumericLessThan = { "s3:TlsVersion" = "1.2" } }, 2]
    }
    error_message = "Plain HTTP and old TLS must be refused on the bucket and on its objects."
  }
}

run "access_is_logged" {
  command = apply

  assert {
    condition     = aws_s3_bucket_logging.this[0].target_bucket == "wmtp-test-access-logs-111122223333"
    error_message = "Who read what must be logged."
  }
}

run "killed_uploads_go_after_a_week" {
  command = apply

  assert {
    condition = [
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule : one(rule.abort_incomplete_multipart_upload).days_after_initiation
      if rule.id == "abort-incomplete-uploads" && rule.status == "Enabled"
    ] == [7]
    error_message = "Parts of killed uploads cost for ever without this rule."
  }
}

run "no_rule_can_strand_a_model" {
  command = apply

  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
      alltrue([for one in rule.transition : one.storage_class == "GLACIER_IR"]) &&
      one(one(rule.filter).and).tags == tomap({ wmtp = "checkpoint" }) && one(one(rule.filter).and).prefix == "wmtp/"
      if length(rule.transition) > 0
    ])
    error_message = "Only objects with the checkpoint's tag may move, and only where they can still be read at once."
  }

  assert {
    condition = length([
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.id if length(rule.transition) > 0
    ]) == 1
    error_message = "There must be one rule that archives checkpoints."
  }

  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule : try(one(rule.expiration).days, 0) == null || try(one(rule.expiration).days, 0) == 0
    ])
    error_message = "An artifact that is a hit every night is as old as its first night: nothing current may expire by age."
  }
}

run "an_archive_by_prefix_alone_is_refused" {
  command = plan

  variables {
    archives = { all = { prefix = "wmtp/", tags = {}, days = 30, noncurrent_days = 3 } }
  }

  expect_failures = [var.archives]
}

run "a_class_that_needs_a_restore_is_refused" {
  command = plan

  variables {
    archives = { deep = { prefix = "wmtp/", tags = { wmtp = "checkpoint" }, days = 30, noncurrent_days = 3, storage_class = "DEEP_ARCHIVE" } }
  }

  expect_failures = [var.archives]
}

run "logs_expire_and_are_taken_from_this_account_only" {
  command = apply

  variables {
    kms_key_arn    = null
    access_log     = null
    archives       = {}
    expire_days    = 400
    log_deliveries = { "logging.s3.amazonaws.com" = "s3/" }
  }

  assert {
    condition     = contains([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : try(one(rule.expiration).days, null)], 400)
    error_message = "Logs must expire."
  }

  assert {
    condition = [
      for one in jsondecode(aws_s3_bucket_policy.this.policy).Statement : [one.Resource, one.Condition.StringEquals["aws:SourceAccount"]]
      if one.Effect == "Allow"
    ] == [["arn:aws:s3:::wmtp-test-artifacts-111122223333/s3/*", "111122223333"]]
    error_message = "A service may deliver below its prefix only, and only for this account."
  }
}
