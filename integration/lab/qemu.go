package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// kernelArgs keep the guest's start short and its console readable.
const kernelArgs = "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr no_timer_check " +
	"cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 tsc=nowatchdog net.ifnames=0"

// Names of the files in a machine's directory.
const (
	fileQMP     = "qmp.sock"     // left to whoever tests with the VM
	fileAgent   = "agent.sock"   // the guest agent's channel
	fileLabQMP  = "lab-qmp.sock" // the lab's own
	fileControl = "control.sock"
	fileConsole = "console.log"
	fileRecord  = "record" // what the guest writes to its port cleave.lab.record
	fileQEMULog = "qemu.log"
	fileInitrd  = "initrd"
)

// qemuArgs is QEMU's command line, without the program.
func qemuArgs(v VM, k kernel, accel, dir string, ports map[int]int) ([]string, error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	a := []string{
		"-name", v.Name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-m", strconv.Itoa(v.Memory), "-smp", strconv.Itoa(v.CPUs),
		"-kernel", k.image, "-initrd", in(fileInitrd), "-append", kernelArgs,
		"-chardev", "file,id=console,path=" + in(fileConsole), "-serial", "chardev:console",
		"-qmp", "unix:" + in(fileQMP) + ",server=on,wait=off",
		"-qmp", "unix:" + in(fileLabQMP) + ",server=on,wait=off",
		"-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci,id=ports",
		"-chardev", "socket,id=control,server=off,path=" + in(fileControl),
		"-device", "virtserialport,bus=ports.0,chardev=control,name=cleave.lab.control",
		"-chardev", "file,id=record,append=on,path=" + in(fileRecord),
		"-device", "virtserialport,bus=ports.0,chardev=record,name=cleave.lab.record",
	}
	a = append(a, accelArgs(accel)...)
	if !v.NoAgent {
		a = append(a,
			"-chardev", "socket,id=agent,server=on,wait=off,path="+in(fileAgent),
			"-device", "virtserialport,bus=ports.0,chardev=agent,name=org.qemu.guest_agent.0")
	}
	net := "user,id=net0"
	for guest, host := range ports {
		net += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, guest)
	}
	a = append(a, "-netdev", net, "-device", "virtio-net-pci,netdev=net0,romfile=")
	disks, err := diskArgs(v.Disks, dir)
	if err != nil {
		return nil, err
	}
	a = append(a, disks...)
	if v.Paused {
		a = append(a, "-S")
	}
	return append(a, v.Args...), nil
}

func accelArgs(accel string) []string {
	if accel == "kvm" {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
}

// diskArgs adds one block node and one device per disk. CHAP secrets are handed
// over in files, for a command line can be read by everybody.
func diskArgs(disks []Disk, dir string) ([]string, error) {
	var a []string
	scsi := 0
	for i, d := range disks {
		proto := map[string]any{"driver": "file", "filename": d.File}
		if l := d.LUN; l != nil {
			proto = map[string]any{
				"driver": "iscsi", "transport": "tcp", "portal": l.Portal, "target": l.Target,
				"lun": l.Number, "initiator-name": l.Initiator,
			}
			if l.User != "" {
				id := fmt.Sprintf("secret%d", i+1)
				file := filepath.Join(dir, id)
				if err := os.WriteFile(file, []byte(l.Secret), 0o600); err != nil {
					return nil, fmt.Errorf("lab: %w", err)
				}
				a = append(a, "-object", "secret,id="+id+",file="+file)
				proto["user"], proto["password-secret"] = l.User, id
			}
		}
		if d.Node != nil {
			proto = d.Node
		}
		block, err := blockArgs(d, proto)
		if err != nil {
			return nil, err
		}
		a = append(a, block...)
		dev := fmt.Sprintf(",id=%s,drive=%s-node", d.ID, d.ID)
		if d.Bus == VirtioBlk {
			dev = "virtio-blk-pci" + dev
		} else {
			if scsi == 0 {
				a = append(a, "-device", "virtio-scsi-pci,id=scsi0")
			}
			dev = fmt.Sprintf("%s%s,bus=scsi0.0,channel=0,scsi-id=0,lun=%d", d.Bus, dev, scsi)
			scsi++
		}
		if d.Serial != "" && d.Bus != SCSIBlock {
			dev += ",serial=" + d.Serial
		}
		if d.Bus != SCSIBlock {
			dev += ",write-cache=on"
		}
		a = append(a, "-device", dev)
	}
	return a, nil
}

// blockArgs adds the disk's block node. What a guest writes to a scratch disk
// goes to a temporary file of QEMU's own, which only -drive can make.
func blockArgs(d Disk, proto map[string]any) ([]string, error) {
	if d.Scratch {
		drive := "if=none,id=" + d.ID + "-node,snapshot=on,driver=raw"
		for _, k := range slices.Sorted(maps.Keys(proto)) {
			drive += fmt.Sprintf(",file.%s=%s", k, strings.ReplaceAll(fmt.Sprint(proto[k]), ",", ",,"))
		}
		return []string{"-drive", drive}, nil
	}
	node, err := json.Marshal(map[string]any{
		"driver": d.Format, "node-name": d.ID + "-node", "read-only": d.ReadOnly, "discard": "unmap", "file": proto,
		"cache": map[string]bool{"direct": d.Cache == "none", "no-flush": d.Cache == "unsafe"},
	})
	if err != nil {
		return nil, fmt.Errorf("lab: disk %s: %w", d.ID, err)
	}
	return []string{"-blockdev", string(node)}, nil
}
