package attach

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/nbd"
)

func TestNodeRecord(t *testing.T) {
	dir := t.TempDir()
	dirs := []string{filepath.Join(dir, "none"), dir}
	record := filepath.Join(dir, "iqn.2026-01.test:x", "192.0.2.1,3260,-1", "default")
	if err := os.MkdirAll(filepath.Dir(record), 0o700); err != nil {
		t.Fatal(err)
	}
	const before = "# BEGIN RECORD 2.1.8\nnode.startup = automatic\nnode.session.auth.authmethod = None\nnode.session.auth.password_length = 0\n# END RECORD\n"
	if err := os.WriteFile(record, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	set := nodeSettings(&LUN{User: "u", Secret: []byte("twelve = more"), MutualUser: "m", MutualSecret: []byte("another secret")})
	if err := editNode(dirs, "iqn.2026-01.test:x", "192.0.2.1:3260", set); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, want := range []string{
		"node.startup = manual\n", "node.session.scan = manual\n", "node.session.auth.authmethod = CHAP\n", "node.session.auth.username = u\n",
		"node.session.auth.password = twelve = more\n", "node.session.auth.username_in = m\n", "node.session.auth.password_in = another secret\n",
		"node.session.auth.password_length = 0\n",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("want once %q in %s", want, text)
		}
	}
	if !strings.HasSuffix(text, "# END RECORD\n") || strings.Contains(text, "automatic") {
		t.Errorf("%s", text)
	}
	if st, err := os.Stat(record); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("others may read the secret: %v, %v", st.Mode(), err)
	}
	if err := editNode(dirs, "iqn.2026-01.test:x", "192.0.2.1:3260", [][2]string{{"a", "b\nnode.startup = automatic"}}); err == nil {
		t.Error("a value of two lines was taken")
	}
	if err := editNode(dirs, "iqn.2026-01.test:x", "192.0.2.2:3260", set); err == nil {
		t.Error("a record that is not there was edited")
	}
}

func TestKilled(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nState:\tS (sleeping)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n": false,
		"Name:\tx\nState:\tZ (zombie)\n":                                        true,
		"Name:\tState:\tZ\nState:\tD (disk sleep)\nSigPnd:\t0000000000000100\n": true,
		"State:\tD (disk sleep)\nShdPnd:\t0000000000000100\n":                   true,
		"State:\tD (disk sleep)\nShdPnd:\t0000000000004000\n":                   false, // SIGTERM
	} {
		if got := killed(status); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}

// TestHandshake: what the kernel is told about a helper's export is what the
// helper says.
func TestHandshake(t *testing.T) {
	b := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(b, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	server, err := nbd.NewServer(nbd.ServerOptions{}, nbd.Export{Device: fileDevice{f, 1 << 20, 512, false}, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	conn, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	served := make(chan error, 1)
	go func() { served <- server.ServeConn(t.Context(), conn) }()
	size, flags, err := handshake(ours)
	if err != nil || size != 1<<20 || flags&3 != 3 { // NBD_FLAG_HAS_FLAGS, NBD_FLAG_READ_ONLY
		t.Errorf("%d bytes, flags %#x, %v", size, flags, err)
	}
	ours.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestGeneric asks the kernel for a family that every kernel has, and for one
// that none has.
func TestGeneric(t *testing.T) {
	g, err := dialGenl("nlctrl")
	if err != nil {
		t.Fatal(err)
	}
	if g.family != unix.GENL_ID_CTRL {
		t.Errorf("family %d", g.family)
	}
	g.close()
	if _, err := dialGenl("no such family"); err == nil {
		t.Error("a family that is not there")
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add(attr(1, []byte{1, 2, 3}))
	f.Add(append(attr(7|unix.NLA_F_NESTED, attr(1, nil)), 3, 0, 1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for _, v := range attrs(b) {
			n += len(v)
		}
		if n > len(b) {
			t.Errorf("%d bytes of attributes in %d", n, len(b))
		}
	})
}

func TestLUNNumber(t *testing.T) {
	// As the kernel writes LUNs of flat space addressing (SAM-5 section 4.7.7).
	for n, want := range map[int]int{0: 0, 255: 255, 256: 0x4100, 300: 0x412c} {
		if got := (&LUN{Number: n}).kernel(); got != want {
			t.Errorf("%d: %d, want %d", n, got, want)
		}
	}
}

func TestMarks(t *testing.T) {
	m := openISCSI{}
	one := m.marks(&LUN{Target: "iqn.x", Portals: []string{"192.0.2.1:3260"}, Number: 7})
	if text := one["ip-192.0.2.1:3260-iscsi-iqn.x-lun-7"]; !strings.Contains(text, "CLEAVE_ATTACHED=1\n") || !strings.Contains(text, "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1\n") {
		t.Errorf("%q", one)
	}
	two := m.marks(&LUN{Target: "iqn.x", Portals: []string{"192.0.2.1:3260", "[2001:db8::1]:3261"}, Number: 300})
	if text := two["ip-2001:db8::1:3261-iscsi-iqn.x-lun-0x412c000000000000"]; len(two) != 2 || strings.Contains(text, "PERSISTENT") || text == "" {
		t.Errorf("%q", two)
	}
}
