# libraries: jansson and libcrypto from a folder that libraries.sh made, by the names that pkg-config would give them.
foreach(library JANSSON:jansson CRYPTO:crypto)
    string(REPLACE ":" ";" names ${library})
    list(GET names 0 target)
    list(GET names 1 file)
    add_library(PkgConfig::${target} STATIC IMPORTED GLOBAL)
    set_target_properties(PkgConfig::${target} PROPERTIES
        IMPORTED_LOCATION ${TINWORKS_LIBRARIES}/lib/lib${file}.a
        INTERFACE_INCLUDE_DIRECTORIES ${TINWORKS_LIBRARIES}/include
        INTERFACE_LINK_LIBRARIES "${CMAKE_DL_LIBS};Threads::Threads")
endforeach()
