mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
}

variables {
  cluster_name             = "wmtp-test"
  namespace                = "wmtp"
  service_account          = "wmtp-train"
  policy                   = "{\"Version\":\"2012-10-17\",\"Statement\":[]}"
  permissions_boundary_arn = "arn:aws:iam::111122223333:policy/wmtp-boundary"
}

run "one_service_account_of_one_cluster_takes_the_role" {
  command = plan

  assert {
    condition = jsondecode(aws_iam_role.this.assume_role_policy).Statement == [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = {
        StringEquals = {
          "aws:SourceAccount"                         = "111122223333"
          "aws:RequestTag/eks-cluster-name"           = "wmtp-test"
          "aws:RequestTag/kubernetes-namespace"       = "wmtp"
          "aws:RequestTag/kubernetes-service-account" = "wmtp-train"
        }
      }
    }]
    error_message = "The trust must name account, cluster, namespace and service account."
  }

  assert {
    condition     = aws_iam_role.this.permissions_boundary == var.permissions_boundary_arn
    error_message = "Every role has the boundary."
  }
}

run "the_association_is_for_the_same_one" {
  command = apply

  assert {
    condition = [
      aws_eks_pod_identity_association.this.cluster_name, aws_eks_pod_identity_association.this.namespace,
      aws_eks_pod_identity_association.this.service_account, aws_eks_pod_identity_association.this.role_arn,
    ] == ["wmtp-test", "wmtp", "wmtp-train", aws_iam_role.this.arn]
    error_message = "The association must give this role to this service account."
  }
}

run "a_pattern_is_refused" {
  command = plan

  variables {
    service_account = "wmtp-*"
  }

  expect_failures = [var.service_account]
}

run "administrators_are_refused" {
  command = plan

  variables {
    managed_policy_arns = { all = "arn:aws:iam::aws:policy/AdministratorAccess" }
  }

  expect_failures = [var.managed_policy_arns]
}
