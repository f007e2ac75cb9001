output "arn" {
  description = "ARN of the secret; its value leaves Secrets Manager by no output."
  value       = aws_secretsmanager_secret.this.arn
}
