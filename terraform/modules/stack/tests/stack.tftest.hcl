mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_resource "aws_db_instance" {
    defaults = {
      address            = "db.internal"
      master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:rds!db-1", kms_key_id = "k", secret_status = "active" }]
    }
  }
  mock_resource "aws_eks_cluster" {
    defaults = { arn = "arn:aws:eks:eu-central-1:111122223333:cluster/wmtp-test" }
  }
}

mock_provider "random" {}

# A test cannot mock ephemeral values; how secrets are made is held by tests/infra.
override_module {
  target  = module.database_secrets
  outputs = { arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:wmtp-test/rds" }
}

override_module {
  target  = module.mlflow_secret
  outputs = { arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:wmtp-test/mlflow" }
}

override_module {
  target  = module.airflow_secret
  outputs = { arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:wmtp-test/airflow" }
}

override_resource {
  target = module.artifacts.aws_s3_bucket.this
  values = { arn = "arn:aws:s3:::A", id = "A" }
}

override_resource {
  target = module.logs.aws_s3_bucket.this
  values = { arn = "arn:aws:s3:::L", id = "L" }
}

override_resource {
  target = module.access_logs.aws_s3_bucket.this
  values = { arn = "arn:aws:s3:::X", id = "X" }
}

override_resource {
  target = module.data_key.aws_kms_key.this
  values = { arn = "arn:aws:kms:eu-central-1:111122223333:key/data" }
}

override_resource {
  target = module.cluster_key.aws_kms_key.this
  values = { arn = "arn:aws:kms:eu-central-1:111122223333:key/cluster" }
}

variables {
  name                     = "wmtp-test"
  permissions_boundary_arn = "arn:aws:iam::111122223333:policy/wmtp-boundary"
  is_highly_available      = true
  zones                    = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  access                   = { platform = { principal_arn = "arn:aws:iam::111122223333:role/platform", policy = "AmazonEKSClusterAdminPolicy" } }
  system_nodes             = { instance_types = ["m7i.large"], min_size = 3, max_size = 6 }
  database                 = { instance_class = "db.m7g.large", backup_days = 30 }
  budget                   = { monthly_usd = 3000, anomaly_usd = 100, emails = ["ml@example.com"] }
  data_buckets             = ["team-data"]
}

# An apply of the whole takes seconds, so one run holds several claims; each says itself what it is.
run "pods_may_do_their_own_work_only" {
  command = apply

  assert {
    condition = toset(keys(module.workloads)) == toset([
      "wmtp-data", "wmtp-train", "wmtp-tune", "wmtp-promote", "wmtp-housekeeping", "mlflow", "airflow-worker", "airflow-triggerer", "airflow-api-server",
    ])
    error_message = "These service accounts have a role; wmtp-judge has none."
  }

  assert {
    condition = toset(flatten([
      for one in jsondecode(module.workloads["wmtp-train"].policy).Statement : one.Resource if strcontains(jsonencode(one.Action), "s3:Put")
      ])) == toset([
      "arn:aws:s3:::A/wmtp/train/*", "arn:aws:s3:::A/wmtp/generate/*", "arn:aws:s3:::A/wmtp/.probe/*",
      "arn:aws:s3:::A/wmtp/runs/*/forced/train.*.json", "arn:aws:s3:::A/wmtp/runs/*/forced/generate.*.json",
      "arn:aws:s3:::A/wmtp/runs/*/reference.json", "arn:aws:s3:::A/wmtp/runs/*/reference.*.json",
      "arn:aws:s3:::A/wmtp/runs/*/train.json", "arn:aws:s3:::A/wmtp/runs/*/train.*.json",
      "arn:aws:s3:::A/wmtp/runs/*/generate.json", "arn:aws:s3:::A/wmtp/runs/*/generate.*.json",
      "arn:aws:s3:::A/wmtp/train/*/checkpoints/*", "arn:aws:s3:::A/wmtp/generate/*/checkpoints/*",
      "arn:aws:s3:::A/wmtp/fit_critic/*", "arn:aws:s3:::A/wmtp/runs/*/forced/fit_critic.*.json", "arn:aws:s3:::A/wmtp/fit_critic/*/checkpoints/*",
      "arn:aws:s3:::A/wmtp/runs/*/fit_critic.json", "arn:aws:s3:::A/wmtp/runs/*/fit_critic.*.json",
    ])
    error_message = "Training writes its own stages and pointers: no registered model, no verdict, no spec."
  }

  assert {
    condition = toset(flatten([
      for one in jsondecode(module.workloads["wmtp-tune"].policy).Statement : one.Resource if strcontains(jsonencode(one.Action), "s3:Put")
      ])) == toset([
      "arn:aws:s3:::A/wmtp/select/*", "arn:aws:s3:::A/wmtp/.probe/*", "arn:aws:s3:::A/wmtp/runs/*/forced/select.*.json",
      "arn:aws:s3:::A/wmtp/runs/*/search.json", "arn:aws:s3:::A/wmtp/runs/*/search.*.json", "arn:aws:s3:::A/wmtp/runs/*/study",
      "arn:aws:s3:::A/wmtp/runs/*/select.json", "arn:aws:s3:::A/wmtp/runs/*/select.*.json",
      "arn:aws:s3:::A/wmtp/generate/*", "arn:aws:s3:::A/wmtp/score/*", "arn:aws:s3:::A/wmtp/score_shard/*", "arn:aws:s3:::A/wmtp/train/*",
      "arn:aws:s3:::A/wmtp/generate/*/checkpoints/*", "arn:aws:s3:::A/wmtp/train/*/checkpoints/*",
      "arn:aws:s3:::A/wmtp/fit_critic/*", "arn:aws:s3:::A/wmtp/fit_critic/*/checkpoints/*",
    ])
    error_message = "A study writes itself and what its trials learn: no data, no verdict, and not what `tuned` stands for."
  }

  assert {
    condition = [
      for account, one in module.workloads : account if strcontains(one.policy, "arn:aws:s3:::A/mlflow/")
    ] == ["mlflow"]
    error_message = "Only MLflow itself touches its artifacts."
  }

  assert {
    condition = alltrue([
      for one in module.workloads : !strcontains(one.policy, "DeleteObjectVersion") && !strcontains(one.policy, "s3:*") && !strcontains(one.policy, "\"Resource\":\"*\"")
    ])
    error_message = "What is deleted can be brought back; each action and each resource is named."
  }

  assert {
    condition = alltrue([
      for one in module.workloads : alltrue([
        for statement in jsondecode(one.policy).Statement :
        statement.Condition.StringEquals["kms:ViaService"] == "s3.eu-central-1.amazonaws.com" if strcontains(jsonencode(statement.Action), "kms:")
      ])
    ])
    error_message = "Keys are used through S3 only."
  }

  assert {
    condition = [
      for account, one in module.workloads : account
      if anytrue([
        for statement in jsondecode(one.policy).Statement :
        contains(flatten([statement.Resource]), "arn:aws:s3:::A/wmtp/judge/*") && strcontains(jsonencode(statement.Action), "s3:Put")
      ])
    ] == ["airflow-worker"]
    error_message = "The worker commits what the sandbox made; a training that writes its own verdict promotes itself."
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(module.workloads["airflow-worker"].policy).Statement :
      !contains(flatten([statement.Resource]), "arn:aws:s3:::A/wmtp/*") || !strcontains(jsonencode(statement.Action), "Put")
    ])
    error_message = "The worker may read the whole store, not write it."
  }

  assert {
    condition = flatten([
      for one in jsondecode(module.workloads["airflow-worker"].policy).Statement : one.Resource if strcontains(jsonencode(one.Resource), "/wmtp/select/")
    ]) == ["arn:aws:s3:::A/wmtp/select/*/cells/*/judge.*.json", "arn:aws:s3:::A/wmtp/select/*/cells/*/reward.json"]
    error_message = "The worker records a trial's verdict in its cell and changes nothing else of the study."
  }

  assert {
    condition = {
      for one in jsondecode(module.workloads["wmtp-housekeeping"].policy).Statement : one.Sid => toset(one.Resource) if contains(["CollectGarbage", "ListUploads"], one.Sid)
      } == {
      CollectGarbage = toset([for stage in ["fit_critic", "generate", "judge", "pull", "reward", "runs", "score", "score_shard", "select", "train"] : "arn:aws:s3:::A/wmtp/${stage}/*"])
      ListUploads    = toset(["arn:aws:s3:::A"])
    }
    error_message = "Housekeeping takes away what is below a stage and old runs, and nothing of MLflow's or of the registry's."
  }

  assert {
    condition = toset(flatten([
      for one in jsondecode(module.workloads["wmtp-housekeeping"].policy).Statement : one.Resource if strcontains(jsonencode(one.Action), "s3:Put")
    ])) == toset(["arn:aws:s3:::A/wmtp/*/quarantine/*", "arn:aws:s3:::A/wmtp/.probe/*"])
    error_message = "What takes away makes nothing."
  }

  assert {
    condition = toset([
      for account, one in module.workloads : account
      if anytrue([
        for statement in jsondecode(one.policy).Statement :
        contains(flatten([statement.Resource]), "arn:aws:s3:::A/wmtp/pull/*") && strcontains(jsonencode(statement.Action), "s3:DeleteObject")
      ])
    ]) == toset(["wmtp-data", "wmtp-housekeeping"])
    error_message = "Data is removed by who pulls it and by housekeeping: the worker, which runs everybody's tasks, cannot."
  }

  assert {
    condition = toset(flatten([
      for one in jsondecode(module.workloads["wmtp-promote"].policy).Statement : one.Resource if strcontains(jsonencode(one.Action), "s3:Put")
      ])) == toset([
      "arn:aws:s3:::A/wmtp/runs/*/promote.json", "arn:aws:s3:::A/wmtp/runs/*/promote.*.json", "arn:aws:s3:::A/wmtp/runs/*/report.json",
      "arn:aws:s3:::A/wmtp/runs/*/report.*.json", "arn:aws:s3:::A/wmtp/runs/*/report.html", "arn:aws:s3:::A/wmtp/registry/*",
      "arn:aws:s3:::A/wmtp/runs/*/watch.json", "arn:aws:s3:::A/wmtp/runs/*/watch.*.json", "arn:aws:s3:::A/wmtp/.probe/*",
      "arn:aws:s3:::A/wmtp/runs/*/contrast.json", "arn:aws:s3:::A/wmtp/runs/*/contrast.*.json",
      "arn:aws:s3:::A/wmtp/runs/*/conclude.json", "arn:aws:s3:::A/wmtp/runs/*/conclude.*.json", "arn:aws:s3:::A/wmtp/tuned/*",
    ])
    error_message = "Promotion reads evidence and cannot change it."
  }

  assert {
    condition = toset([
      for account, one in module.workloads : account if strcontains(one.policy, "arn:aws:s3:::team-data")
    ]) == toset(["wmtp-data", "airflow-worker"])
    error_message = "Data is pulled by wmtp-data and pinned by the worker; nobody else reaches it."
  }
}

run "controllers_touch_this_deployment_only" {
  command = apply

  assert {
    condition = flatten([
      for one in jsondecode(module.external_secrets.policy).Statement : one.Resource if strcontains(jsonencode(one.Action), "GetSecretValue")
      ]) == [
      "arn:aws:secretsmanager:eu-central-1:111122223333:secret:wmtp-test/*", "arn:aws:secretsmanager:eu-central-1:111122223333:secret:rds!db-1",
    ]
    error_message = "Secrets of this deployment and its database's master, no others."
  }

  assert {
    condition = alltrue([
      for one in jsondecode(module.load_balancer_controller.policy).Statement :
      strcontains(jsonencode(one.Condition), "elbv2.k8s.aws/cluster\":\"wmtp-test")
      if strcontains(jsonencode(one.Action), "elasticloadbalancing:Create") || strcontains(jsonencode(one.Action), "elasticloadbalancing:Delete")
    ])
    error_message = "What does not carry this cluster's tag is not touched."
  }

  assert {
    condition     = length(module.load_balancer_controller.policy) < 10240
    error_message = "IAM takes 10240 characters of inline policies for a role."
  }

  assert {
    condition     = length(output.nat_addresses) == 3 && output.database_has_standby && output.is_protected
    error_message = "What is highly available has a way out of each zone and a standby database, and does not go by mistake."
  }

  assert {
    condition     = toset(keys(output.database_secret_arns)) == toset(["mlflow", "mlflow_auth", "airflow", "optuna"])
    error_message = "Four databases, each with an owner of its own."
  }
}

run "the_cheap_one_has_one_of_each_and_can_be_taken_down" {
  command = plan

  variables {
    is_highly_available = false
    deletion_protection = false
  }

  assert {
    condition     = length(output.nat_addresses) == 1 && !output.database_has_standby && !output.is_protected
    error_message = "One way out, no standby, no protection."
  }
}

run "a_cluster_without_an_administrator_is_refused" {
  command = plan

  variables {
    access = { learners = { principal_arn = "arn:aws:iam::111122223333:role/learners", policy = "AmazonEKSViewPolicy" } }
  }

  expect_failures = [var.access]
}

run "a_single_system_node_is_refused" {
  command = plan

  variables {
    system_nodes = { instance_types = ["m7i.large"], min_size = 1, max_size = 2 }
  }

  expect_failures = [var.system_nodes]
}
