// Package lab boots small real virtual machines for the tests and for
// `cleave demo`: a Debian kernel under QEMU, with KVM where it works and
// software emulation where it does not (found out by running it, see Accel).
//
// No disk image is built. An initramfs of 8 MB (static busybox and the kernel
// modules in dependency order) mounts the host's own root read-only over 9p
// under a tmpfs overlay and switches to it, so every package of the host is in
// the VM, and nothing that the VM does reaches the host but its own disks. A
// small init of our own takes the place of systemd; there is no udev.
//
//	m, err := lab.Boot(ctx, lab.VM{Name: "db", Kind: lab.DB, Disks: []lab.Disk{{File: "db.img"}}})
//	defer m.Close()
//	out, err := m.Run(ctx, "lvcreate -s -n s -L 64M vgdata/pgdata")
//	err = m.Shutdown(ctx)
//
// Kinds are what a VM is for: DB has the QEMU guest agent and PostgreSQL on
// LVM; Legacy has no agent; Proof activates and checks what was recovered.
//
// What it needs on the host (`make deps` sees to it): Debian's
// qemu-system-x86, qemu-block-extra (iSCSI disks), busybox-static, and in the
// guest qemu-guest-agent, postgresql, lvm2, e2fsprogs. The kernel is Debian's
// linux-image, unpacked into the cache directory and not installed.
//
// Every VM dies with the process that booted it (PR_SET_PDEATHSIG), and Close
// leaves neither a process nor a file.
//
// Traps met while it was built:
//   - The 9p mount caches (cache=loose): what changes on the host after boot may
//     be seen old in the guest. Build the programs a guest shall run before Boot.
//   - QEMU's control sockets serve one client at a time. QMPSocket and
//     AgentSocket are left to whoever tests with the VM; the lab has a QMP socket
//     of its own.
//   - A virtio-serial port reads as "end of file" while its host side is closed.
//     The command channel is therefore connected by QEMU as the client, before
//     the guest runs.
//   - Without udev nobody makes /dev/virtio-ports, and LVM waits for ever unless
//     told not to; Debian's busybox has no flock.
//   - Starting a program costs 0.2–0.4 s in a guest under emulation. A canary that
//     writes without a pause takes the one CPU and makes lvcreate take eight
//     seconds instead of one.
//   - Copying an empty PostgreSQL cluster over 9p file by file takes 10 s; as one
//     archive, 3 s.
//   - /dev/kvm may exist, open, and still refuse an ordinary kernel: only a boot
//     tells.
package lab
