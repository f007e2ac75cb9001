output "host" {
  description = "Host name. Clients connect with `sslmode=verify-full` and Amazon's bundle of certificates."
  value       = aws_db_instance.this.address
}

output "port" {
  description = "Port."
  value       = 5432
}

output "arn" {
  description = "ARN of the instance."
  value       = aws_db_instance.this.arn
}

output "master_secret_arn" {
  description = "Secret of the master user, made and changed by RDS."
  value       = one(aws_db_instance.this.master_user_secret[*].secret_arn)
}

output "has_standby" {
  description = "Whether a standby in another zone takes over."
  value       = aws_db_instance.this.multi_az
}

output "is_protected" {
  description = "Whether RDS refuses to delete the instance."
  value       = aws_db_instance.this.deletion_protection
}
