include(CMakeFindDependencyMacro)
find_dependency(gdn_varlen)
include(${CMAKE_CURRENT_LIST_DIR}/parent-targets.cmake)
