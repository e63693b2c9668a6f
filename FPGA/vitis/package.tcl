# Package the kernel for Vitis: from rtl/*.sv to csengine_top.xo.
#
#   vivado -mode batch -source package.tcl -tclargs PART
#
# NOT RUN where csengine is developed: there is no Vivado. Written after AMD UG1393, "Packaging RTL Kernels"; the tests
# run it against stand-ins for Vivado's commands, which shows that it is sound Tcl and no more.

set kernel csengine_top
set part [lindex $argv 0]
if {$part eq ""} { error "usage: vivado -mode batch -source package.tcl -tclargs PART" }

# Arguments of the kernel: name, offset of its register, bits, and for pointers the bus that they lead to.
source arguments.tcl

create_project -force $kernel ./project -part $part
add_files -norecurse [lsort [glob rtl/*.sv]]
add_files -fileset constrs_1 -norecurse constraints.xdc
# The platform brings the clock of the real thing; these constraints are for synthesis of the kernel by itself.
set_property USED_IN {synthesis out_of_context} [get_files constraints.xdc]
set_property top $kernel [current_fileset]
update_compile_order -fileset sources_1

ipx::package_project -root_dir ./ip -vendor csengine -library kernel -taxonomy /KernelIP -import_files -set_current true
set core [ipx::current_core]
set_property name $kernel $core
set_property version 1.0 $core
set_property core_revision 1 $core
set_property auto_family_support_level level_2 $core
set_property supported_families {} $core

# Clock, reset and buses; Vivado infers the buses from the names of their signals.
ipx::associate_bus_interfaces -busif s_axi_control -clock ap_clk $core
ipx::associate_bus_interfaces -busif m_axi_gmem -clock ap_clk $core
ipx::associate_bus_interfaces -clock ap_clk -reset ap_rst_n $core

# The register map: control registers of ap_ctrl_hs, then the arguments.
set bus [ipx::get_bus_interfaces s_axi_control -of_objects $core]
set map [ipx::add_memory_map s_axi_control $core]
set_property slave_memory_map_ref s_axi_control $bus
set block [ipx::add_address_block reg0 $map]
set_property range 4096 $block

proc add_register {block name offset bits} {
    set register [ipx::add_register $name $block]
    set_property address_offset $offset $register
    set_property size $bits $register
    return $register
}

proc add_fields {register fields} {
    foreach {name bit access} $fields {
        set field [ipx::add_field $name $register]
        set_property bit_offset $bit $field
        set_property bit_width 1 $field
        set_property access $access $field
    }
}

add_fields [add_register $block CTRL 0x000 32] {
    AP_START 0 read-write  AP_DONE 1 read-only  AP_IDLE 2 read-only  AP_READY 3 read-only  AUTO_RESTART 7 read-write
}
add_fields [add_register $block GIER 0x004 32] {GIE 0 read-write}
add_fields [add_register $block IP_IER 0x008 32] {DONE 0 read-write  READY 1 read-write}
add_fields [add_register $block IP_ISR 0x00C 32] {DONE 0 read-write  READY 1 read-write}
foreach {name offset bits bus} $arguments {
    set register [add_register $block $name $offset $bits]
    if {$bus ne ""} {
        set parameter [ipx::add_register_parameter ASSOCIATED_BUSIF $register]
        set_property value $bus $parameter
    }
}

# What makes an IP a kernel.
set_property sdx_kernel true $core
set_property sdx_kernel_type rtl $core
ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity -kernel $core
ipx::save_core $core
close_project

package_xo -force -xo_path $kernel.xo -kernel_name $kernel -ip_directory ./ip -ctrl_protocol ap_ctrl_hs
