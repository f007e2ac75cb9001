# As cheap as it can be and still be the same platform: one zone's NAT gateway and endpoints, one small database without a standby.
# The rest costs the same or next to nothing, and is not left out.

module "stack" {
  source = "../../modules/stack"

  name                     = "wmtp-dev"
  permissions_boundary_arn = var.permissions_boundary_arn
  is_highly_available      = false
  deletion_protection      = false
  zones                    = var.zones
  access                   = var.access
  dns                      = var.dns
  data_buckets             = var.data_buckets
  noncurrent_days          = 7

  system_nodes = { instance_types = ["m7i.large"], min_size = 2, max_size = 3 }
  database     = { instance_class = "db.t4g.medium", backup_days = 7 }
  budget       = { monthly_usd = 600, anomaly_usd = 30, emails = var.budget_emails }
}
