output "backend_config" {
  description = "Write it to `live/state.s3.tfbackend`; each environment adds its own key."
  value       = <<-EOT
    bucket     = "${module.state.name}"
    region     = "${var.region}"
    kms_key_id = "${module.state_key.arn}"
  EOT
}

output "permissions_boundary_arns" {
  description = "For `permissions_boundary_arn` of each environment."
  value       = { for environment, boundary in aws_iam_policy.boundary : environment => boundary.arn }
}

output "plan_role_arn" {
  description = "For CI's plan."
  value       = aws_iam_role.plan.arn
}

output "apply_role_arns" {
  description = "For CI's apply, by environment."
  value       = { for environment, role in aws_iam_role.apply : environment => role.arn }
}
