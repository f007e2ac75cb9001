data "aws_caller_identity" "current" {}

locals {
  # Encoded one by one: the statements are of different shapes, and a list has one.
  denials = [
    jsonencode({
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }),
    jsonencode({
      Sid       = "TlsOneTwoAndLater"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
      Condition = { NumericLessThan = { "s3:TlsVersion" = "1.2" } }
    }),
  ]

  # A request without these headers takes the bucket's default, which is the key. `Null` keeps it out: a condition that negates also
  # holds where there is nothing to compare, and would refuse every plain upload.
  key_denials = var.kms_key_arn == null ? [] : [
    jsonencode({
      Sid       = "NoOtherEncryption"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:PutObject"
      Resource  = "${aws_s3_bucket.this.arn}/*"
      Condition = {
        Null            = { "s3:x-amz-server-side-encryption" = "false" }
        StringNotEquals = { "s3:x-amz-server-side-encryption" = "aws:kms" }
      }
    }),
    jsonencode({
      Sid       = "NoOtherKey"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:PutObject"
      Resource  = "${aws_s3_bucket.this.arn}/*"
      Condition = {
        Null            = { "s3:x-amz-server-side-encryption-aws-kms-key-id" = "false" }
        StringNotEquals = { "s3:x-amz-server-side-encryption-aws-kms-key-id" = var.kms_key_arn }
      }
    }),
  ]

  deliveries = [
    for service, prefix in var.log_deliveries : jsonencode({
      Sid       = "Delivery${join("", regexall("[a-z0-9]+", service))}"
      Effect    = "Allow"
      Principal = { Service = service }
      Action    = "s3:PutObject"
      Resource  = "${aws_s3_bucket.this.arn}/${prefix}*"
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
    })
  ]
}

resource "aws_s3_bucket" "this" {
  # checkov:skip=CKV_AWS_144: One region. What is lost with it and how long it takes to make anew stands in docs/platform.md.
  # checkov:skip=CKV2_AWS_62: Nothing listens: the pipeline is driven by Airflow, and a notification without a reader is noise.
  # checkov:skip=CKV_AWS_145: With `kms_key_arn` null, for access logs only: load balancers deliver to SSE-S3 alone.
  # checkov:skip=CKV_AWS_18: With `access_log` null, for the access-log bucket itself, which would log its own logging.
  bucket        = var.name
  force_destroy = false
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id
  policy = "{\"Version\":\"2012-10-17\",\"Statement\":[${join(",", concat(local.denials, local.key_denials, local.deliveries))}]}"

  # S3 answers 409 to two changes of access at once.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_logging" "this" {
  count = var.access_log == null ? 0 : 1

  bucket        = aws_s3_bucket.this.id
  target_bucket = var.access_log.bucket
  target_prefix = "s3/${var.name}/"
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  # checkov:skip=CKV_AWS_300: The first rule does it; checkov does not see static rules beside dynamic ones. A test of the module holds it.
  bucket = aws_s3_bucket.this.id

  rule {
    id     = "abort-incomplete-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  rule {
    id     = "forget-deleted"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  dynamic "rule" {
    for_each = var.expire_days == null ? [] : [var.expire_days]

    content {
      id     = "expire"
      status = "Enabled"

      filter {}

      expiration {
        days = rule.value
      }
    }
  }

  dynamic "rule" {
    for_each = var.archives

    content {
      id     = "archive-${rule.key}"
      status = "Enabled"

      filter {
        and {
          prefix = rule.value.prefix
          tags   = rule.value.tags
        }
      }

      transition {
        days          = rule.value.days
        storage_class = rule.value.storage_class
      }

      noncurrent_version_expiration {
        noncurrent_days = rule.value.noncurrent_days
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
