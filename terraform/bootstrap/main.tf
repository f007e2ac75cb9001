data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  iam        = "arn:${local.partition}:iam::${local.account_id}"
}

# State

module "state_key" {
  source = "../modules/kms-key"

  name         = "${var.prefix}-state"
  description  = "Terraform state"
  via_services = ["s3"]
}

module "state_access_logs" {
  source = "../modules/s3-bucket"

  name            = "${var.prefix}-state-access-logs-${local.account_id}"
  kms_key_arn     = null
  access_log      = null
  noncurrent_days = 30
  expire_days     = 400
  log_deliveries  = { "logging.s3.amazonaws.com" = "s3/" }
}

# Every state that ever was can be brought back for a year.
module "state" {
  source = "../modules/s3-bucket"

  name            = "${var.prefix}-state-${local.account_id}"
  kms_key_arn     = module.state_key.arn
  access_log      = { bucket = module.state_access_logs.name }
  noncurrent_days = 365
}

# Roles that AWS makes for itself when a service is first used in the console. In an empty account nobody has: Spot requests and
# encrypted disks of node groups would fail.
resource "aws_iam_service_linked_role" "this" {
  for_each = var.service_linked_roles

  aws_service_name = each.key
}
