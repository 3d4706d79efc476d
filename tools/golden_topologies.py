#!/usr/bin/env python3
"""Write tests/topologies/*.xml: machines with several GPUs, as hwloc's XML shows them, for tests of placement.

usage: golden_topologies.py [FOLDER]

They are built from the public facts of those machines (cores, NUMA nodes, the bus address of each GPU, and the affinity
that `nvidia-smi topo -m` prints for it), not recorded on them. Left out, because placement does not look at it: caches,
the second hardware thread of each core, network cards, switches between a host bridge and a GPU.
"""
import os
import sys

GIB = 1 << 30
A100, H100, RTX_6000 = ("20b2", "GA100 [A100 SXM4 80GB]"), ("2330", "GH100 [H100 SXM5 80GB]"), \
    ("2bb1", "GB202GL [RTX PRO 6000 Blackwell Workstation Edition]")

# file: packages, NUMA nodes a package, cores a node, memory of a node, the GPU, {NUMA node: the buses of its GPUs}
MACHINES = {
    # NVIDIA DGX A100 user guide; 2 EPYC 7742 in NPS4.
    "dgx-a100": (2, 4, 16, 256 * GIB, A100,
                 {1: [0x47, 0x4e], 3: [0x07, 0x0f], 5: [0xb7, 0xbd], 7: [0x87, 0x90]}),
    # NVIDIA DGX H100 user guide; 2 Xeon 8480C.
    "dgx-h100": (2, 1, 56, 1024 * GIB, H100, {0: [0x1b, 0x43, 0x52, 0x61], 1: [0x9d, 0xc3, 0xd1, 0xdf]}),
    # A workstation of one socket.
    "workstation": (1, 1, 16, 128 * GIB, RTX_6000, {0: [0x01, 0x02]}),
}


class Writer:
    def __init__(self):
        self.lines, self.depth, self.ids = [], 0, 0

    def line(self, text):
        self.lines.append(" " * self.depth + text)

    def open(self, object_type, **attributes):
        self.ids += 1
        given = "".join(f' {name}="{value}"' for name, value in attributes.items())
        self.line(f'<object type="{object_type}" gp_index="{self.ids}"{given}>')
        self.depth += 1

    def close(self):
        self.depth -= 1
        self.line("</object>")

    def leaf(self, object_type, **attributes):
        self.open(object_type, **attributes)
        self.depth -= 1
        self.lines[-1] = self.lines[-1][:-1] + "/>"


def bits(first, n):
    """A set of n indices as hwloc writes it: groups of 32 bits, the highest first."""
    value = ((1 << n) - 1) << first
    groups = [f"0x{value >> shift & 0xffffffff:08x}" for shift in range(0, max(value.bit_length(), 1), 32)]
    return ",".join(reversed(groups))


def sets(first_cpu, n_cpus, first_node, n_nodes):
    cpus, nodes = bits(first_cpu, n_cpus), bits(first_node, n_nodes)
    return {"cpuset": cpus, "complete_cpuset": cpus, "nodeset": nodes, "complete_nodeset": nodes}


def write_gpu(w, bus, gpu):
    """A host bridge, the root port below it, and the GPU on the port's bus."""
    root = bus - 1
    w.open("Bridge", bridge_type="0-1", depth=0, bridge_pci=f"0000:[{root:02x}-{bus:02x}]")
    w.open("Bridge", bridge_type="1-1", depth=1, bridge_pci=f"0000:[{bus:02x}-{bus:02x}]",
           pci_busid=f"0000:{root:02x}:01.0", pci_type="0604 [8086:352a] [0000:0000] 00", pci_link_speed="31.5")
    w.open("PCIDev", pci_busid=f"0000:{bus:02x}:00.0", pci_type=f"0302 [10de:{gpu[0]}] [10de:0000] a1",
           pci_link_speed="31.5")
    w.line('<info name="PCIVendor" value="NVIDIA Corporation"/>')
    w.line(f'<info name="PCIDevice" value="{gpu[1]}"/>')
    for _ in range(3):
        w.close()


def write_node(w, node, cores, memory, gpus, gpu, has_group):
    """A NUMA node with its cores and devices; in a group of its own when the package has several."""
    first = node * cores
    here = sets(first, cores, node, 1)
    if has_group:
        w.open("Group", os_index=node, **here, kind=0, subkind=0)
    w.leaf("NUMANode", os_index=node, **here, local_memory=memory)
    for core in range(first, first + cores):
        w.open("Core", os_index=core, **sets(core, 1, node, 1))
        w.leaf("PU", os_index=core, **sets(core, 1, node, 1))
        w.close()
    for bus in gpus:
        write_gpu(w, bus, gpu)
    if has_group:
        w.close()


def machine(packages, nodes, cores, memory, gpu, gpus):
    w = Writer()
    everything = sets(0, packages * nodes * cores, 0, packages * nodes)
    w.open("Machine", os_index=0, **everything, allowed_cpuset=everything["cpuset"],
           allowed_nodeset=everything["nodeset"])
    for package in range(packages):
        w.open("Package", os_index=package,
               **sets(package * nodes * cores, nodes * cores, package * nodes, nodes))
        for node in range(package * nodes, (package + 1) * nodes):
            write_node(w, node, cores, memory, gpus.get(node, []), gpu, nodes > 1)
        w.close()
    w.close()
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n<topology version="2.0">\n'
    return head + "\n".join(w.lines) + "\n</topology>\n"


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "tests/topologies"
    os.makedirs(folder, exist_ok=True)
    for name, facts in MACHINES.items():
        with open(os.path.join(folder, name + ".xml"), "w", encoding="utf-8") as f:
            f.write(machine(*facts))


if __name__ == "__main__":
    main()
