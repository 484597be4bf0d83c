# emulated: the CUDA kernels as plain C++.
file(GLOB CU_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
list(FILTER CU_SOURCES EXCLUDE REGEX "blas_lt|nccl_load")
set_source_files_properties(${CU_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_library(kernels_emulated OBJECT ${CU_SOURCES} ${CMAKE_SOURCE_DIR}/kernels/cuda/emulate.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/blas_plain.cc ${CMAKE_SOURCE_DIR}/kernels/cuda/nccl_plain.cc)
target_include_directories(kernels_emulated PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/lib)
target_compile_definitions(kernels_emulated PUBLIC CUDA_EMULATED)
set_target_properties(kernels_emulated PROPERTIES CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
target_compile_options(kernels_emulated PRIVATE -O2 -ffp-contract=off)
