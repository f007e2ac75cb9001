output "cluster_name" {
  description = "Name of the cluster. It is known only when the CNI is there, so that no node waits for it."
  value       = aws_eks_cluster.this.name
  depends_on  = [aws_eks_addon.before_nodes]
}

output "cluster_arn" {
  description = "ARN of the cluster."
  value       = aws_eks_cluster.this.arn
}

output "kubernetes_version" {
  description = "Version of the control plane."
  value       = aws_eks_cluster.this.version
}

output "endpoint" {
  description = "Address of the API."
  value       = aws_eks_cluster.this.endpoint
}

output "security_group_id" {
  description = "Security group of the control plane and of every node."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "addon_versions" {
  description = "Versions of the add-ons as they are, to be pinned in `addon_versions`."
  value       = { for name, addon in merge(aws_eks_addon.before_nodes, aws_eks_addon.on_nodes) : name => addon.addon_version }
}

output "is_protected" {
  description = "Whether EKS refuses to delete the cluster."
  value       = aws_eks_cluster.this.deletion_protection
}
