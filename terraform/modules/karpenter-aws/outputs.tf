output "interruption_queue" {
  description = "Name of the queue, for `settings.interruptionQueue`: without it a Spot node ends without a word."
  value       = aws_sqs_queue.interruptions.name
}

output "node_role_name" {
  description = "Role of the nodes, for `role` of an EC2NodeClass."
  value       = aws_iam_role.node.name
}
