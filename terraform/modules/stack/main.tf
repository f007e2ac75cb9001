data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  region     = data.aws_region.current.region
  databases  = toset(["mlflow", "mlflow_auth", "airflow", "optuna"])

  # What the store puts on each object of a checkpoint (mlops_tasks/store/s3.py): of a training, or of a generation under way.
  checkpoint_tag = { wmtp = "checkpoint" }
}

# Keys: one for what runs, one for what is kept

module "cluster_key" {
  source = "../kms-key"

  name                 = "${var.name}-cluster"
  description          = "Kubernetes Secrets, disks and logs of ${var.name}"
  via_services         = ["ec2", "eks"]
  log_group_prefixes   = ["/aws/eks/${var.name}/", "/aws/vpc/${var.name}/", "/aws/rds/instance/${var.name}-"]
  service_linked_roles = { "autoscaling.amazonaws.com" = "AWSServiceRoleForAutoScaling" }
}

module "data_key" {
  source = "../kms-key"

  name         = "${var.name}-data"
  description  = "Objects, database, images and secrets of ${var.name}"
  via_services = ["ecr", "rds", "s3", "secretsmanager"]
}

# Network and cluster

module "network" {
  source = "../network"

  name                     = var.name
  cidr                     = var.cidr
  zones                    = var.zones
  nat_per_zone             = var.is_highly_available
  endpoints_per_zone       = var.is_highly_available
  flow_log_traffic         = var.is_highly_available ? "ALL" : "REJECT"
  readable_buckets         = var.data_buckets
  kms_key_arn              = module.cluster_key.arn
  permissions_boundary_arn = var.permissions_boundary_arn
}

module "eks" {
  source = "../eks"

  name                     = var.name
  kubernetes_version       = var.kubernetes_version
  subnet_ids               = module.network.private_subnet_ids
  public_access_cidrs      = var.public_access_cidrs
  access                   = var.access
  addon_versions           = var.addon_versions
  tags                     = { deployment = var.name }
  deletion_protection      = var.deletion_protection
  kms_key_arn              = module.cluster_key.arn
  permissions_boundary_arn = var.permissions_boundary_arn
}

module "node_groups" {
  source = "../node-groups"

  cluster_name             = module.eks.cluster_name
  kubernetes_version       = coalesce(var.node_kubernetes_version, var.kubernetes_version)
  subnet_ids               = module.network.private_subnet_ids
  groups                   = merge({ system = var.system_nodes }, var.more_node_groups)
  kms_key_arn              = module.cluster_key.arn
  tags                     = { deployment = var.name }
  permissions_boundary_arn = var.permissions_boundary_arn
}

module "karpenter" {
  source = "../karpenter-aws"

  cluster_name             = module.eks.cluster_name
  kms_key_arn              = module.cluster_key.arn
  permissions_boundary_arn = var.permissions_boundary_arn
}

# What is kept

module "access_logs" {
  source = "../s3-bucket"

  name            = "${var.name}-access-logs-${local.account_id}"
  kms_key_arn     = null
  access_log      = null
  noncurrent_days = var.noncurrent_days
  expire_days     = var.log_days

  log_deliveries = {
    "logdelivery.elasticloadbalancing.amazonaws.com" = "alb/"
    "logging.s3.amazonaws.com"                       = "s3/"
  }
}

module "artifacts" {
  source = "../s3-bucket"

  name            = "${var.name}-artifacts-${local.account_id}"
  kms_key_arn     = module.data_key.arn
  access_log      = { bucket = module.access_logs.name }
  noncurrent_days = var.noncurrent_days

  archives = {
    checkpoints = {
      prefix          = "wmtp/"
      tags            = local.checkpoint_tag
      days            = 30
      noncurrent_days = 3
    }
  }
}

module "logs" {
  source = "../s3-bucket"

  name            = "${var.name}-logs-${local.account_id}"
  kms_key_arn     = module.data_key.arn
  access_log      = { bucket = module.access_logs.name }
  noncurrent_days = var.noncurrent_days
  expire_days     = var.log_days
}

module "database" {
  source = "../rds-postgres"

  name                      = var.name
  vpc_id                    = module.network.vpc_id
  subnet_ids                = module.network.database_subnet_ids
  client_security_group_ids = { nodes = module.eks.security_group_id }
  instance_class            = var.database.instance_class
  storage_gib               = var.database.storage_gib
  max_storage_gib           = var.database.max_storage_gib
  backup_days               = var.database.backup_days
  multi_az                  = var.is_highly_available
  deletion_protection       = var.deletion_protection
  kms_key_arn               = module.data_key.arn
  log_kms_key_arn           = module.cluster_key.arn
  permissions_boundary_arn  = var.permissions_boundary_arn
}

module "images" {
  source = "../ecr"

  name         = var.name
  repositories = ["airflow", "mlflow", "sandbox", "trainer"]
  kms_key_arn  = module.data_key.arn
}

# Secrets: their values are made here and are in no state

module "database_secrets" {
  source   = "../secret"
  for_each = local.databases

  name          = "${var.name}/rds/${each.key}"
  description   = "Owner of the database ${each.key}"
  kms_key_arn   = module.data_key.arn
  generated     = { password = 40 }
  generation    = var.password_version
  recovery_days = var.deletion_protection ? 30 : 7

  fields = {
    username = each.key
    dbname   = each.key
    host     = module.database.host
    port     = tostring(module.database.port)
  }
}

module "mlflow_secret" {
  source = "../secret"

  name          = "${var.name}/mlflow"
  description   = "MLflow's administrator, the pipeline's user, and the key of its sessions"
  kms_key_arn   = module.data_key.arn
  fields        = { admin_username = "administrator", pipeline_username = "pipeline" }
  generated     = { admin_password = 40, pipeline_password = 40, flask_secret_key = 64 }
  recovery_days = var.deletion_protection ? 30 : 7
}

# A new Fernet key makes what Airflow has encrypted unreadable, so this one follows no rotation of passwords.
module "airflow_secret" {
  source = "../secret"

  name          = "${var.name}/airflow"
  description   = "Airflow's keys: of what it encrypts, and of what its parts sign"
  kms_key_arn   = module.data_key.arn
  generated     = { fernet_key = 32, jwt_secret = 64, api_secret_key = 64 }
  fernet        = ["fernet_key"]
  recovery_days = var.deletion_protection ? 30 : 7
}

# Names and money

module "dns_tls" {
  source = "../dns-tls"
  count  = var.dns == null ? 0 : 1

  domain        = var.dns.domain
  zone_id       = var.dns.zone_id
  hosts         = ["airflow", "mlflow"]
  load_balancer = var.dns.load_balancer
}

module "budget" {
  source = "../budget"

  name        = var.name
  monthly_usd = var.budget.monthly_usd
  anomaly_usd = var.budget.anomaly_usd
  emails      = var.budget.emails
  tag_key     = "deployment"
  tag_value   = var.name
}
