output "cluster_name" {
  description = "The cluster, and the discovery tag of Karpenter."
  value       = module.eks.cluster_name
}

output "region" {
  description = "The region."
  value       = local.region
}

output "vpc_id" {
  description = "The network. The load balancer's controller needs it by name: the metadata service is out of reach for pods."
  value       = module.network.vpc_id
}

output "vpc_cidr" {
  description = "Block of the network, for NetworkPolicies: the API and the load balancers are in it."
  value       = var.cidr
}

output "database_cidrs" {
  description = "Blocks of the database's subnets, for NetworkPolicies."
  value       = module.network.database_cidrs
}

output "s3_cidrs" {
  description = "Addresses of S3 in this region, for NetworkPolicies. AWS adds some now and then: look again before each upgrade of the charts."
  value       = module.network.s3_cidrs
}

output "zones" {
  description = "The three zones."
  value       = var.zones
}

output "nat_addresses" {
  description = "Addresses from which nodes reach the internet, for allow-lists of others."
  value       = module.network.nat_addresses
}

output "cluster_endpoint" {
  description = "Address of the Kubernetes API."
  value       = module.eks.endpoint
}

output "addon_versions" {
  description = "Versions of the EKS add-ons as they are."
  value       = module.eks.addon_versions
}

output "interruption_queue" {
  description = "For Karpenter's `settings.interruptionQueue`."
  value       = module.karpenter.interruption_queue
}

output "karpenter_node_role" {
  description = "For `role` of EC2NodeClasses."
  value       = module.karpenter.node_role_name
}

output "disk_kms_key_arn" {
  description = "For `kmsKeyID` of EC2NodeClasses and `kmsKeyId` of storage classes."
  value       = module.cluster_key.arn
}

output "artifact_bucket" {
  description = "The store is below `wmtp/`, MLflow's artifacts below `mlflow/`."
  value       = module.artifacts.name
}

output "log_bucket" {
  description = "Airflow's task logs are below `airflow/`."
  value       = module.logs.name
}

output "access_log_bucket" {
  description = "Load balancers log below `alb/`."
  value       = module.access_logs.name
}

output "database_host" {
  description = "PostgreSQL, port 5432, TLS only."
  value       = module.database.host
}

output "database_has_standby" {
  description = "Whether a standby in another zone takes over."
  value       = module.database.has_standby
}

output "database_master_secret_arn" {
  description = "Secret of the master user, for the Job that makes databases and owners."
  value       = module.database.master_secret_arn
}

output "database_secret_arns" {
  description = "Secret of each database's owner."
  value       = { for name, secret in module.database_secrets : name => secret.arn }
}

output "mlflow_secret_arn" {
  description = "MLflow's users and session key."
  value       = module.mlflow_secret.arn
}

output "airflow_secret_arn" {
  description = "Airflow's keys."
  value       = module.airflow_secret.arn
}

output "image_repositories" {
  description = "Where images are pushed."
  value       = module.images.urls
}

output "certificate_arn" {
  description = "For the Ingresses; null without a domain."
  value       = one(module.dns_tls[*].certificate_arn)
}

output "hosts" {
  description = "Names that the certificate is for."
  value       = flatten(module.dns_tls[*].hosts)
}

output "pod_roles" {
  description = "Role of each service account of the pipeline, MLflow and Airflow. `wmtp-judge` has none."
  value       = { for account, one in module.workloads : account => one.role_arn }
}

output "is_protected" {
  description = "Whether cluster and database refuse to be deleted."
  value       = module.eks.is_protected && module.database.is_protected
}
