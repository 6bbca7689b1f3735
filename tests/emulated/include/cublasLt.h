// Of cuBLASLt: what core/cublaslt.h names.
#pragma once

enum cublasLtEpilogue_t {
  CUBLASLT_EPILOGUE_DEFAULT = 1,
  CUBLASLT_EPILOGUE_RELU = 2,
  CUBLASLT_EPILOGUE_GELU = 32
};
