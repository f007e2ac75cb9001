output "monitor_arn" {
  description = "The anomaly monitor."
  value       = aws_ce_anomaly_monitor.this.arn
}
