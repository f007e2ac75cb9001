mock_provider "aws" {}

variables {
  name         = "wmtp-test"
  repositories = ["airflow", "mlflow", "trainer"]
  kms_key_arn  = "arn:aws:kms:eu-central-1:111122223333:key/data"
}

run "a_tag_means_one_image_for_ever" {
  command = plan

  assert {
    condition     = alltrue([for one in aws_ecr_repository.this : one.image_tag_mutability == "IMMUTABLE" && !one.force_delete])
    error_message = "Tags must be immutable, and a repository with images must not go."
  }
}

run "images_are_scanned_and_encrypted_with_our_key" {
  command = plan

  assert {
    condition = alltrue([
      for one in aws_ecr_repository.this :
      one.image_scanning_configuration[0].scan_on_push && one.encryption_configuration[0].encryption_type == "KMS" &&
      one.encryption_configuration[0].kms_key == var.kms_key_arn
    ])
    error_message = "Scan on push; our key."
  }
}

run "no_tagged_image_expires" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for one in aws_ecr_lifecycle_policy.this : [for rule in jsondecode(one.policy).rules : rule.selection.tagStatus == "untagged"]
    ])) && length(aws_ecr_lifecycle_policy.this) == 3
    error_message = "A manifest in the store may name an old image."
  }
}

run "no_repository_is_refused" {
  command = plan

  variables {
    repositories = []
  }

  expect_failures = [var.repositories]
}
