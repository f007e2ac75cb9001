output "role_arn" {
  description = "Role of the nodes."
  value       = aws_iam_role.node.arn
}

output "ami_types" {
  description = "Image of each group."
  value       = local.ami_types
}
