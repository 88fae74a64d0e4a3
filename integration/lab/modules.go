package lab

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// baseModules is what every lab VM loads: enough for its root, its disks and
// its channels, and for LVM snapshots inside it.
var baseModules = []string{
	"virtio_pci", "virtio-rng", "virtio_console", "virtio_blk", "virtio_scsi", "sd_mod",
	"virtio_net", "9pnet_virtio", "9p", "overlay",
	"crc32c_generic", "ext4", // ext4 asks for crc32c only when it mounts
	"dm-mod", "dm-snapshot",
}

// moduleOrder returns the files of the wanted modules and of all that they
// depend on, each after what it needs. Names may be written with - or _.
func moduleOrder(root string, want []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading kernel modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("reading kernel modules: %w", err)
	}
	done := map[string]bool{}
	for _, line := range strings.Fields(string(builtin)) {
		done[moduleName(line)] = true
	}
	var order []string
	var visit func(name, neededBy string) error
	visit = func(name, neededBy string) error {
		name = moduleName(name)
		if done[name] {
			return nil
		}
		done[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("kernel module %s (needed by %s) is not in %s", name, neededBy, root)
		}
		needs, err := moduleNeeds(path)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := visit(n, name); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range want {
		if err := visit(name, "the lab"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// moduleNeeds reads the "depends" field that the kernel's build put into a
// module's .modinfo section, so that no depmod is needed on the host.
func moduleNeeds(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", path, err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("kernel module %s: no .modinfo section", path)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", path, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}
