output "arn" {
  description = "ARN of the key. It is known only when its alias is there too."
  value       = aws_kms_key.this.arn
  depends_on  = [aws_kms_alias.this]
}
