package target

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/iscsi/mask"
)

// tool runs a foreign program; its Debian package is installed by make deps.
func tool(t *testing.T, debian, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed (Debian package %s)", name, debian)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// qemu names a LUN for QEMU's block layer.
func (l *lab) qemu(lun int, more string) string {
	return fmt.Sprintf("driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=%d,file.initiator-name=%s%s",
		l.portal, testTarget, lun, alice, more)
}

// QEMU's initiator writes a file to a LUN, and reads the same back.
func TestQEMU(t *testing.T) {
	for _, more := range []string{"", ",file.header-digest=crc32c"} {
		l := newLab(t, Options{})
		d := newDisk(8 << 20)
		l.add(d)
		dir := t.TempDir()
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		p := make([]byte, 8<<20)
		for i := 0; i < len(p)/2; i++ {
			p[i] = byte(rand.Uint32())
		}
		l.must(os.WriteFile(src, p, 0o600))
		if out, err := tool(t, "qemu-utils and qemu-block-extra", "qemu-img", "convert", "-n", "-f", "raw", src, "--target-image-opts", l.qemu(0, more)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		there := make([]byte, len(p))
		if _, err := d.ReadAt(there, 0); err != nil || !bytes.Equal(there, p) {
			t.Fatal("what QEMU wrote is not what is there")
		}
		if out, err := tool(t, "qemu-utils", "qemu-img", "convert", "--image-opts", "-O", "raw", l.qemu(0, more), dst); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("what QEMU read is not what was there (%v)", err)
		}
		out, err := tool(t, "qemu-utils", "qemu-io", "--image-opts", l.qemu(0, more), "-c", "write -P 0x5a 4096 1M", "-c", "read -P 0x5a 4096 1M",
			"-c", "write -z 8192 64k", "-c", "read -P 0 8192 64k", "-c", "flush")
		if err != nil || strings.Contains(out, "verification failed") {
			t.Fatalf("%v\n%s", err, out)
		}
		if st, err := l.s.Stats(testTarget, 0); err != nil || st.WriteBytes < 4<<20 || st.Running != 0 {
			t.Errorf("%+v %v", st, err)
		}
	}
}

func TestQEMUSeesReadOnly(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0, ReadOnly: true}))
	if out, err := tool(t, "qemu-utils and qemu-block-extra", "qemu-io", "--image-opts", l.qemu(0, ""), "-c", "write 0 4k"); err == nil {
		t.Errorf("a read-only LUN was opened for writing:\n%s", out)
	}
	// Granted, on the same LUN.
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}))
	if out, err := tool(t, "qemu-utils", "qemu-io", "--image-opts", l.qemu(0, ""), "-c", "write 0 4k"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestQEMUWithCHAP(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.must(l.s.SetCredentials(alice, &mask.Credentials{User: "alice", Secret: []byte("right-secret-1")}))
	secret := func(s string) []string {
		return []string{"--object", "secret,id=pw,data=" + s, "--image-opts", l.qemu(0, ",file.user=alice,file.password-secret=pw"), "-c", "read 0 4k"}
	}
	if out, err := tool(t, "qemu-utils and qemu-block-extra", "qemu-io", secret("right-secret-1")...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := tool(t, "qemu-utils", "qemu-io", secret("wrong-secret-1")...); err == nil {
		t.Errorf("a wrong secret was accepted:\n%s", out)
	}
}

// libiscsi's discovery shows to each initiator what it may see, and with it the
// LUNs.
func TestDiscoveryByISCSILS(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.must(l.s.SetMask(testTarget, mask.Anyone))
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}))
	ls := func(who string) string {
		out, err := tool(t, "libiscsi-bin", "iscsi-ls", "-s", "-i", who, "iscsi://"+l.portal.String())
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	if out := ls(string(alice)); !strings.Contains(out, string(testTarget)) || !strings.Contains(out, "Lun:0") {
		t.Errorf("alice sees:\n%s", out)
	}
	if out := ls(string(bob)); strings.Contains(out, string(testTarget)) {
		t.Errorf("bob sees:\n%s", out)
	}
}
