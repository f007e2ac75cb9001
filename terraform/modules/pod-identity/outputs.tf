output "role_arn" {
  description = "The role."
  value       = aws_iam_role.this.arn
}

output "policy" {
  description = "What the role may do, as a policy in JSON."
  value       = var.policy
}
