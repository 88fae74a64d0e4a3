//go:build lab

package attach

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host is this machine, with the program and an image.
type host struct {
	*testing.T
	dir, exe, image string
}

// build makes the program in a directory of its own.
func build(t *testing.T) (dir, exe string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cleave-att-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe = filepath.Join(dir, "cleave")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return dir, exe
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: making block devices needs it")
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("this kernel or container has no %s: %v", path, err)
		}
	}
	dir, exe := build(t)
	h := &host{t, dir, exe, filepath.Join(dir, "image")}
	if err := errorsOf(os.WriteFile(h.image, nil, 0o600), os.Truncate(h.image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	return h
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *host) try(name string, args ...string) (string, error) {
	h.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(context.WithoutCancel(h.Context()), name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %q: %w: %s%s", name, args, err, stdout.Bytes(), stderr.Bytes())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (h *host) run(name string, args ...string) string {
	h.Helper()
	out, err := h.try(name, args...)
	if err != nil {
		h.Fatal(err)
	}
	return out
}

// helper is the process behind the image's device.
func (h *host) helper() int {
	h.Helper()
	for _, pid := range h.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if !bytes.Contains(line, []byte("watch")) {
			return pid
		}
	}
	h.Fatal("no helper")
	return 0
}

// processes are helpers and watchers of this program, and no other's.
func (h *host) processes() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, name := range names {
		var pid int
		if exe, err := os.Readlink(name); err == nil && exe == h.exe {
			if _, err := fmt.Sscanf(name, "/proc/%d/exe", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// nothingLeft wants no trace of this program.
func (h *host) nothingLeft() {
	h.Helper()
	if out := h.run(h.exe, "lun", "attached", "-o", "json"); strings.Contains(out, h.image) {
		h.Errorf("left: %s", out)
	}
	eventually(h.T, 30*time.Second, "no process is left", func() error {
		if left := h.processes(); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	if losetup := h.run("losetup", "-a"); strings.Contains(losetup, "/run/cleave/attach/") {
		h.Errorf("left: %s", losetup)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), "fuse.cleave") {
		h.Errorf("left among the mounts: %v", err)
	}
}

func eventually(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

// fioArgs verify what they write, through the page cache of nobody.
func fioArgs(file string, more ...string) []string {
	return append([]string{"--name=v", "--filename=" + file, "--size=64m", "--rw=randrw", "--bsrange=4k-256k", "--blockalign=4k", "--ioengine=libaio",
		"--iodepth=16", "--direct=1", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1"}, more...)
}

// TestFileSystem: ext4 is made on a writable attachment, and verified under load;
// its helper is killed in the middle, which is I/O errors and no hang; and all
// is gone in the end.
func TestFileSystem(t *testing.T) {
	h := newHost(t)
	dev := h.run(h.exe, "lun", "attach", h.image, "--writable", "--method", "fuse", "-o", "name")
	h.run("mkfs.ext4", "-q", "-F", dev)
	mnt := filepath.Join(h.dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	h.run("mount", dev, mnt)
	file := filepath.Join(mnt, "file")
	h.run("fio", fioArgs(file)...)
	t.Log("fio verified 64 MiB")

	load := exec.Command("fio", fioArgs(file, "--time_based", "--runtime=1000")...)
	var said bytes.Buffer
	load.Stdout, load.Stderr = &said, &said
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	written := func() string {
		return strings.Fields(h.run("cat", "/sys/block/"+filepath.Base(dev)+"/stat"))[6]
	}
	before := written()
	eventually(t, time.Minute, "fio writes", func() error {
		if written() == before {
			return fmt.Errorf("%s sectors", before)
		}
		return nil
	})
	if err := unix.Kill(h.helper(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := load.Wait(); err == nil || !bytes.Contains(said.Bytes(), []byte("Input/output error")) && !bytes.Contains(said.Bytes(), []byte("Read-only file system")) {
		t.Errorf("fio after the helper was killed: %v: %s", err, said.Bytes())
	}
	t.Logf("fio had its I/O error %v after the kill", time.Since(began).Round(time.Millisecond))
	if _, err := h.try("dd", "if="+dev, "of=/dev/null", "bs=4096", "count=1", "skip=1000", "iflag=direct"); err == nil || !strings.Contains(err.Error(), "Input/output error") {
		t.Errorf("a read of the device: %v", err)
	}
	if out := h.run(h.exe, "lun", "attached"); !strings.Contains(out, dev+"  dead") {
		t.Errorf("list: %s", out)
	}
	if _, err := h.try(h.exe, "lun", "detach", dev); err == nil || !strings.Contains(err.Error(), mnt) {
		t.Errorf("detached while it was mounted: %v", err)
	}
	h.run("umount", mnt)
	h.run(h.exe, "lun", "detach", dev)
	h.nothingLeft()
	// What was flushed before is in the image, and a journal replay away.
	dev = h.run(h.exe, "lun", "attach", h.image, "--writable", "-o", "name")
	if _, err := h.try("e2fsck", "-fy", dev); err != nil && !strings.Contains(err.Error(), "exit status 1") {
		t.Error(err)
	}
	h.run("e2fsck", "-fn", dev)
	h.run(h.exe, "lun", "detach", h.image)
	h.nothingLeft()
}

// slabs are the kernel's caches that an attachment leaves something in if it
// leaks: objects by name.
func slabs(t *testing.T) map[string]int {
	t.Helper()
	b, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		t.Logf("no slabinfo: %v", err)
		return nil
	}
	all := map[string]int{}
	for line := range strings.Lines(string(b)) {
		w := strings.Fields(line)
		var n int
		if len(w) < 3 {
			continue
		}
		if _, err := fmt.Sscan(w[1], &n); err == nil && (strings.HasPrefix(w[0], "fuse") || w[0] == "bdev_cache" || w[0] == "mnt_cache" || w[0] == "request_queue") {
			all[w[0]] = n
		}
	}
	return all
}

// TestRounds attaches and detaches 500 times.
func TestRounds(t *testing.T) {
	h := newHost(t)
	loops := func() int {
		names, _ := filepath.Glob("/sys/block/loop*")
		return len(names)
	}
	round := func(i int) {
		args := []string{"lun", "attach", h.image, "-o", "name"}
		if i%2 == 0 {
			args = append(args, "--writable")
		}
		dev := h.run(h.exe, args...)
		h.run("dd", "if="+dev, "of=/dev/null", "bs=64k", "count=4", "status=none")
		h.run(h.exe, "lun", "detach", dev)
	}
	for i := range 10 {
		round(i)
	}
	disks, before := loops(), slabs(t)
	began := time.Now()
	const rounds = 500
	for i := range rounds {
		round(i)
	}
	t.Logf("%d rounds, %v each", rounds, (time.Since(began) / rounds).Round(time.Millisecond))
	h.nothingLeft()
	if n := loops(); n > disks {
		t.Errorf("%d loop devices, %d before", n, disks)
	}
	after := slabs(t)
	t.Logf("slab objects before and after: %v, %v", before, after)
	for name, n := range after {
		if n > before[name]+rounds/2 {
			t.Errorf("slab %s grew from %d to %d objects", name, before[name], n)
		}
	}
}
