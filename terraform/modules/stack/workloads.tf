# Who may do what: one role for each service account of the pipeline, MLflow and Airflow. `wmtp-judge`, which runs code that a
# model wrote, is not here: it has no role.

locals {
  store = "${module.artifacts.arn}/wmtp"

  read_store = [
    { Sid = "ReadStore", Effect = "Allow", Action = ["s3:GetObject"], Resource = ["${local.store}/*"] },
    # On the whole bucket: with a condition S3 answers 403 for an object that is not there, and "nothing here yet" could not be told
    # from "not allowed". Names of other prefixes can be seen, their content cannot.
    { Sid = "ListBucket", Effect = "Allow", Action = ["s3:ListBucket", "s3:GetBucketLocation"], Resource = [module.artifacts.arn] },
  ]

  write = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]

  # Without `s3:DeleteObjectVersion` what is deleted can be brought back, by nobody who has one of these roles.
  stages = {
    wmtp-data = {
      folders = ["pull", "score", "score_shard"]
      tasks   = ["pull_data", "pull_model", "pull_reference", "score", "score_shard"]
    }
    wmtp-train = {
      folders = ["train", "generate", "fit_critic"]
      tasks   = ["reference", "train", "generate", "fit_critic"]
    }
    wmtp-promote = {
      folders = []
      tasks   = ["promote", "report", "watch", "contrast", "conclude"]
    }
    wmtp-tune = {
      folders = ["select"]
      tasks   = ["search", "select"]
    }
  }

  write_stage = {
    for account, stage in local.stages : account => [{
      Sid    = "WriteOwnStages"
      Effect = "Allow"
      Action = local.write
      Resource = concat(
        [for folder in stage.folders : "${local.store}/${folder}/*"],
        [for folder in stage.folders : "${local.store}/runs/*/forced/${folder}.*.json"],
        flatten([for task in stage.tasks : ["${local.store}/runs/*/${task}.json", "${local.store}/runs/*/${task}.*.json"]]),
        contains(stage.tasks, "report") ? ["${local.store}/runs/*/report.html"] : [],
        # Who moves an alias holds a lease there and keeps a log.
        contains(stage.tasks, "promote") ? ["${local.store}/registry/*"] : [],
        # Which study a run works on, and what `tuned` stands for.
        contains(stage.tasks, "search") ? ["${local.store}/runs/*/study"] : [],
        contains(stage.tasks, "conclude") ? ["${local.store}/tuned/*"] : [],
        # The store asks once a process whether the server honours conditions.
        ["${local.store}/.probe/*"],
      )
    }]
  }

  # Of all stages, with those whose result the worker commits for a pod without credentials.
  folders = concat(sort(flatten([for stage in local.stages : stage.folders])), ["judge", "reward"])

  # A trial is a run of these stages in the pod of its worker. Verdicts and rewards are not among them: the pod asks for those, in
  # runs/…/asks/search.0/… or select.0, which is below what it may write already, for `*` crosses `/`.
  write_trials = [{
    Sid      = "WriteTrials"
    Effect   = "Allow"
    Action   = local.write
    Resource = [for folder in ["fit_critic", "generate", "score", "score_shard", "train"] : "${local.store}/${folder}/*"]
  }]

  tag_checkpoints = {
    for account, folders in { wmtp-train = ["train", "generate", "fit_critic"], wmtp-tune = ["train", "generate", "fit_critic"] } : account => [{
      Sid       = "TagCheckpoints"
      Effect    = "Allow"
      Action    = ["s3:PutObjectTagging"]
      Resource  = [for folder in folders : "${local.store}/${folder}/*/checkpoints/*"]
      Condition = { StringEquals = { for key, value in local.checkpoint_tag : "s3:RequestObjectTag/${key}" => value } }
    }]
  }

  read_sources = length(var.data_buckets) == 0 ? [] : [{
    Sid    = "ReadDataSources"
    Effect = "Allow"
    Action = ["s3:GetObject", "s3:ListBucket"]
    Resource = flatten([
      for bucket in sort(var.data_buckets) : ["arn:${local.partition}:s3:::${bucket}", "arn:${local.partition}:s3:::${bucket}/*"]
    ])
  }]

  use_key = [{
    Sid       = "UseKeyThroughS3"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = [module.data_key.arn]
    Condition = { StringEquals = { "kms:ViaService" = "s3.${local.region}.amazonaws.com" } }
  }]

  list_logs = { Sid = "ListLogs", Effect = "Allow", Action = ["s3:ListBucket", "s3:GetBucketLocation"], Resource = [module.logs.arn] }

  read_logs = [
    { Sid = "ReadLogs", Effect = "Allow", Action = ["s3:GetObject"], Resource = ["${module.logs.arn}/airflow/*"] },
    local.list_logs,
  ]

  write_logs = [
    { Sid = "WriteLogs", Effect = "Allow", Action = ["s3:GetObject", "s3:PutObject"], Resource = ["${module.logs.arn}/airflow/*"] },
    local.list_logs,
  ]

  # Statements are of different shapes, and the branches of an expression have one: they travel as JSON.
  workloads = {
    wmtp-data    = { namespace = "wmtp", statements = [jsonencode(local.read_store), jsonencode(local.write_stage["wmtp-data"]), jsonencode(local.read_sources), jsonencode(local.use_key)] }
    wmtp-train   = { namespace = "wmtp", statements = [jsonencode(local.read_store), jsonencode(local.write_stage["wmtp-train"]), jsonencode(local.tag_checkpoints["wmtp-train"]), jsonencode(local.use_key)] }
    wmtp-tune    = { namespace = "wmtp", statements = [jsonencode(local.read_store), jsonencode(local.write_stage["wmtp-tune"]), jsonencode(local.write_trials), jsonencode(local.tag_checkpoints["wmtp-tune"]), jsonencode(local.use_key)] }
    wmtp-promote = { namespace = "wmtp", statements = [jsonencode(local.read_store), jsonencode(local.write_stage["wmtp-promote"]), jsonencode(local.use_key)] }
    wmtp-housekeeping = {
      namespace = "wmtp"
      statements = [jsonencode(local.read_store), jsonencode([
        # What nobody needs any more, and uploads that never ended.
        { Sid = "CollectGarbage", Effect = "Allow", Action = ["s3:DeleteObject", "s3:AbortMultipartUpload"], Resource = [for folder in concat(local.folders, ["runs"]) : "${local.store}/${folder}/*"] },
        { Sid = "ListUploads", Effect = "Allow", Action = ["s3:ListBucketMultipartUploads"], Resource = [module.artifacts.arn] },
        # A manifest goes first, and aside. The store asks once a process whether the server honours conditions.
        { Sid = "Quarantine", Effect = "Allow", Action = ["s3:PutObject"], Resource = ["${local.store}/*/quarantine/*"] },
        { Sid = "AskForConditions", Effect = "Allow", Action = local.write, Resource = ["${local.store}/.probe/*"] },
      ]), jsonencode(local.use_key)]
    }
    mlflow = {
      namespace = "mlflow"
      statements = [jsonencode([
        { Sid = "Artifacts", Effect = "Allow", Action = concat(["s3:GetObject"], local.write), Resource = ["${module.artifacts.arn}/mlflow/*"] },
        { Sid = "ListOwn", Effect = "Allow", Action = ["s3:ListBucket"], Resource = [module.artifacts.arn], Condition = { StringLike = { "s3:prefix" = ["mlflow/*"] } } },
      ]), jsonencode(local.use_key)]
    }
    airflow-worker = {
      namespace = "airflow"
      statements = [jsonencode(local.read_store), jsonencode([
        { Sid = "WriteRunsAndVerdicts", Effect = "Allow", Action = local.write, Resource = ["${local.store}/judge/*", "${local.store}/reward/*", "${local.store}/runs/*", "${local.store}/registry/*", "${local.store}/.probe/*"] },
        # What a trial has asked for is recorded in its cell.
        { Sid = "AnswerTrials", Effect = "Allow", Action = ["s3:PutObject"], Resource = [for task in ["judge.*", "reward"] : "${local.store}/select/*/cells/*/${task}.json"] },
        # What `force` takes away: a manifest and checkpoints, under the lease of the key. Results it can neither make nor change.
        { Sid = "LeaseAndQuarantine", Effect = "Allow", Action = ["s3:PutObject"], Resource = ["${local.store}/*/lease.json", "${local.store}/*/quarantine/*"] },
        { Sid = "TakeAwayForced", Effect = "Allow", Action = ["s3:DeleteObject"], Resource = ["${local.store}/*/lease.json", "${local.store}/*/manifest.json", "${local.store}/*/checkpoints/*"] },
      ]), jsonencode(local.read_sources), jsonencode(local.write_logs), jsonencode(local.use_key)]
    }
    airflow-triggerer  = { namespace = "airflow", statements = [jsonencode(local.write_logs), jsonencode(local.use_key)] }
    airflow-api-server = { namespace = "airflow", statements = [jsonencode(local.read_store), jsonencode(local.read_logs), jsonencode(local.use_key)] }
  }

  workload_policies = {
    for account, one in local.workloads : account => format(
      "{\"Version\":\"2012-10-17\",\"Statement\":[%s]}",
      join(",", compact([for list in one.statements : trimsuffix(trimprefix(list, "["), "]")])),
    )
  }
}

module "workloads" {
  source   = "../pod-identity"
  for_each = local.workloads

  cluster_name             = module.eks.cluster_name
  namespace                = each.value.namespace
  service_account          = each.key
  policy                   = local.workload_policies[each.key]
  permissions_boundary_arn = var.permissions_boundary_arn
}
