package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// probeLimit bounds the trial boot with KVM; one that works needs about a second.
const probeLimit = 10 * time.Second

// Accel returns "kvm" if this host runs an ordinary Linux kernel under KVM, else
// "tcg", QEMU's software emulation. It finds out by booting one, for /dev/kvm
// may open and still refuse; the answer is kept until the host restarts.
func Accel(ctx context.Context) (string, error) {
	if !kvmOpens() {
		return "tcg", nil
	}
	k, err := findKernel()
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(append(boot, k.release...))
	known := filepath.Join(cache, "accel-"+hex.EncodeToString(key[:8]))
	if b, err := os.ReadFile(known); err == nil && (string(b) == "kvm" || string(b) == "tcg") {
		return string(b), nil
	}
	accel := "tcg"
	ok, err := bootsUnder(ctx, k, "kvm")
	if err != nil {
		return "", err
	}
	if ok {
		accel = "kvm"
	}
	return accel, writeAtomically(known, []byte(accel))
}

func kvmOpens() bool {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	dev.Close()
	return true
}

// bootsUnder reports whether a kernel reaches its first program under accel.
func bootsUnder(ctx context.Context, k kernel, accel string) (bool, error) {
	initrd, err := initramfs(k, nil)
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "cleave-lab-probe-")
	if err != nil {
		return false, fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(dir)
	console := filepath.Join(dir, fileConsole)
	args := append(accelArgs(accel), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-m", "256", "-kernel", k.image, "-initrd", initrd,
		"-append", kernelArgs+" lab.probe", "-chardev", "file,id=c,path="+console, "-serial", "chardev:c")
	p, err := startProcess(qemuProgram, args, filepath.Join(dir, fileQEMULog))
	if err != nil {
		return false, err
	}
	limit := time.NewTimer(probeLimit)
	defer limit.Stop()
	select {
	case <-p.done:
	case <-limit.C:
	case <-ctx.Done():
	}
	p.kill()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	b, err := os.ReadFile(console)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // QEMU refused before it made the file
	}
	return bytes.Contains(b, []byte("lab: probe ok")), err
}
