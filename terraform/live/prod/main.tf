# A zone may be lost: everything is there three times, or twice and moves by itself.

module "stack" {
  source = "../../modules/stack"

  name                     = "wmtp-prod"
  permissions_boundary_arn = var.permissions_boundary_arn
  is_highly_available      = true
  deletion_protection      = true
  cidr                     = "10.41.0.0/16"
  zones                    = var.zones
  access                   = var.access
  dns                      = var.dns
  data_buckets             = var.data_buckets
  noncurrent_days          = 30

  system_nodes = { instance_types = ["m7i.xlarge"], min_size = 3, max_size = 6 }
  database     = { instance_class = "db.m7g.large", backup_days = 30, storage_gib = 100, max_storage_gib = 500 }
  budget       = { monthly_usd = 4000, anomaly_usd = 150, emails = var.budget_emails }
}
