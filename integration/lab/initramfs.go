package lab

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

//go:embed guest
var guestFiles embed.FS

// kernel is Debian's kernel package, unpacked by deps.sh.
type kernel struct {
	release string // "6.1.0-56-amd64"
	image   string // vmlinuz
	modules string // lib/modules/RELEASE
}

// CacheDir is where the lab keeps what is costly to make: the kernel, the
// initramfs, an empty PostgreSQL cluster. Removing it is always safe.
func CacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	return filepath.Join(base, "cleave"), nil
}

// findKernel returns the newest kernel in the caches.
func findKernel() (kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return kernel{}, err
	}
	for _, dir := range []string{cache, "/var/cache/cleave"} {
		images, err := filepath.Glob(filepath.Join(dir, "kernel-*", "boot", "vmlinuz-*"))
		if err != nil || len(images) == 0 {
			continue
		}
		sort.Slice(images, func(i, j int) bool { return modTime(images[i]) < modTime(images[j]) })
		image := images[len(images)-1]
		release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		return kernel{
			release: release,
			image:   image,
			modules: filepath.Join(filepath.Dir(filepath.Dir(image)), "lib", "modules", release),
		}, nil
	}
	return kernel{}, fmt.Errorf("lab: no kernel for virtual machines in %s: run `make deps`", cache)
}

func modTime(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return fi.ModTime().UnixNano()
}

// initramfs returns the file with busybox, the base and the extra modules, made
// once per kernel, module set, busybox and stage 1.
func initramfs(k kernel, extra []string) (string, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("lab: no static busybox (Debian: busybox-static; run `make deps`): %w", err)
	}
	stage1, err := guestFiles.ReadFile("guest/stage1")
	if err != nil {
		return "", err
	}
	want := append(append([]string(nil), baseModules...), extra...)
	h := sha256.New()
	h.Write(busybox)
	h.Write(stage1)
	fmt.Fprintln(h, k.release, modTime(k.image), want)
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "initramfs-"+hex.EncodeToString(h.Sum(nil))[:16]+".cpio")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	order, err := moduleOrder(k.modules, want)
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	var b bytes.Buffer
	c := &cpioWriter{w: &b}
	for _, d := range []string{"bin", "dev", "proc", "sys", "lower", "rw", "root", "modules", "lab"} {
		c.dir(d)
	}
	c.add("dev/console", cpioChar|0o600, 5, 1, nil)
	c.file("bin/busybox", busybox)
	c.file("init", stage1)
	var names []string
	for _, m := range order {
		body, err := os.ReadFile(m)
		if err != nil {
			return "", fmt.Errorf("lab: %w", err)
		}
		names = append(names, filepath.Base(m))
		c.file("modules/"+filepath.Base(m), body)
	}
	c.file("modules/order", []byte(strings.Join(names, "\n")+"\n"))
	if err := c.close(); err != nil {
		return "", err
	}
	return path, writeAtomically(path, b.Bytes())
}

// initrdFor writes one VM's initramfs: the common one, followed by an archive
// with the scripts of its kind and its configuration.
func initrdFor(v VM, common, pgTemplate, path string) error {
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer out.Close()
	in, err := os.Open(common)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer in.Close()
	n, err := io.Copy(out, in)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	if _, err := out.Write(make([]byte, -n&511)); err != nil {
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	c := &cpioWriter{w: out}
	c.dir("lab")
	for name, src := range map[string]string{
		"init": "init", "inittab": "inittab", "setup": "setup", "control": "control", "down": "down",
		"profile": string(v.Kind),
	} {
		body, err := guestFiles.ReadFile("guest/" + src)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		c.file("lab/"+name, body)
	}
	c.file("lab/conf", []byte(guestConf(v, pgTemplate)))
	if err := c.close(); err != nil {
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	return out.Close()
}

// guestConf is the configuration that the guest's scripts source.
func guestConf(v VM, pgTemplate string) string {
	var b strings.Builder
	set := func(name, value string) {
		fmt.Fprintf(&b, "%s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
	set("LAB_NAME", v.Name)
	set("LAB_KIND", string(v.Kind))
	set("LAB_DATA", v.Layout.Data)
	set("LAB_WAL", v.Layout.WAL)
	set("LAB_CANARY", v.Layout.Canary)
	set("LAB_PGTEMPLATE", pgTemplate)
	if v.NoAgent {
		set("LAB_AGENT", "")
	} else {
		set("LAB_AGENT", "1")
	}
	set("LAB_DISKS", strings.Join(v.devices(), " "))
	for i, d := range v.devices() {
		set(fmt.Sprintf("LAB_DISK%d", i+1), d)
	}
	return b.String()
}

// writeAtomically makes path appear with all its content or not at all, whoever
// else makes the same file at the same time.
func writeAtomically(path string, body []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(body); err != nil {
		f.Close()
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("lab: %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}
