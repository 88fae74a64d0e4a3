package lab

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestCPIO has the archive read by GNU cpio and by the busybox that is in it.
func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	c := &cpioWriter{w: &b}
	c.dir("bin")
	want := map[string]string{"bin/a": "x", "bin/empty": "", "bin/long-name-here": strings.Repeat("y", 1234)}
	for _, name := range []string{"bin/a", "bin/empty", "bin/long-name-here"} {
		c.file(name, []byte(want[name]))
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	for _, reader := range [][]string{{"cpio", "-id", "--quiet"}, {"busybox", "cpio", "-id"}} {
		program, err := exec.LookPath(reader[0])
		if err != nil {
			t.Logf("without %s (Debian: cpio, busybox-static)", reader[0])
			continue
		}
		dir := t.TempDir()
		cmd := exec.Command(program, reader[1:]...)
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(b.Bytes())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", reader, err, out)
		}
		for name, body := range want {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != body {
				t.Errorf("%v: %s: %d bytes, %v", reader, name, len(got), err)
			}
		}
	}
}

// TestModuleOrder checks the promise on the real kernel: every module stands
// after all that it needs.
func TestModuleOrder(t *testing.T) {
	k, err := findKernel()
	if err != nil {
		t.Skip(err)
	}
	order, err := moduleOrder(k.modules, append(baseModules, "xfs", "dm-thin-pool", "iscsi_tcp"))
	if err != nil {
		t.Fatal(err)
	}
	place := map[string]int{}
	for i, m := range order {
		if _, twice := place[moduleName(m)]; twice {
			t.Errorf("%s twice", m)
		}
		place[moduleName(m)] = i
	}
	for m, i := range place {
		needs, err := moduleNeeds(order[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range needs {
			if j, ok := place[moduleName(n)]; !ok || j >= i {
				t.Errorf("%s at %d needs %s at %d (%v)", m, i, n, j, ok)
			}
		}
	}
	for _, m := range []string{"xfs", "libcrc32c", "dm_thin_pool", "dm_bufio", "jbd2", "libiscsi", "virtio"} {
		if _, ok := place[m]; !ok {
			t.Errorf("%s is missing", m)
		}
	}
	if _, err := moduleOrder(k.modules, []string{"no-such-module"}); err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("an unknown module: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	v, err := VM{Kind: DB, Disks: []Disk{{File: "a"}, {LUN: &LUN{}, Bus: SCSIHD}, {File: "b", ID: "mine"}, {LUN: &LUN{}, Bus: SCSIBlock}}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(v.devices(), " "); got != "/dev/vda /dev/sda /dev/vdb /dev/sdb" {
		t.Error(got)
	}
	if v.Name != "db" || v.Memory != 512 || v.Disks[2].ID != "mine" || v.Disks[3].ID != "disk4" || v.Disks[0].Cache != "none" {
		t.Errorf("%+v", v)
	}
	for want, v := range map[string]VM{
		"needs a disk":        {Kind: DB},
		`kind "what"`:         {Kind: "what"},
		"only lower-case":     {Kind: Proof, Name: "A b"},
		"a file, a LUN or":    {Kind: Proof, Disks: []Disk{{}}},
		"scsi-block needs":    {Kind: Proof, Disks: []Disk{{File: "f", Bus: SCSIBlock}}},
		`cache mode "direct"`: {Kind: Proof, Disks: []Disk{{File: "f", Cache: "direct"}}},
		`bus "ide"`:           {Kind: Proof, Disks: []Disk{{File: "f", Bus: "ide"}}},
	} {
		if _, err := v.withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestSecretIsNotAnArgument: a command line can be read by every user.
func TestSecretIsNotAnArgument(t *testing.T) {
	dir := t.TempDir()
	args, err := diskArgs([]Disk{{ID: "d", Bus: SCSIHD, LUN: &LUN{User: "u", Secret: "very secret"}}}, dir)
	if err != nil || strings.Contains(strings.Join(args, " "), "very secret") {
		t.Errorf("%q, %v", args, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "secret1")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestNumbersCheck(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	var record []Commit
	for k := int64(1); k <= 10; k++ {
		record = append(record, Commit{K: k, Begin: at(10 * k), Committed: at(10*k + 5)})
	}
	for _, c := range []struct {
		name         string
		n            Numbers
		began, ended time.Time
		want         string
	}{
		{"all that was committed", Numbers{4, 1, 4}, at(46), at(49), ""},
		{"in doubt, not there", Numbers{4, 1, 4}, at(46), at(70), ""},
		{"in doubt, there", Numbers{6, 1, 6}, at(46), at(70), ""},
		{"a commit is missing", Numbers{3, 1, 3}, at(46), at(49), "4 was committed 1s before the snapshot began and is missing"},
		{"from the future", Numbers{5, 1, 5}, at(46), at(49), "5 was begun 1s after the snapshot ended and is there"},
		{"a hole", Numbers{3, 1, 4}, at(46), at(49), "holes"},
		{"the start is missing", Numbers{3, 2, 4}, at(46), at(49), "holes"},
		{"nothing", Numbers{}, at(46), at(49), "empty"},
	} {
		err := c.n.Check(record, c.began, c.ended)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if gap := LargestGap(record, time.Time{}, time.Time{}); gap != 10*time.Second {
		t.Error(gap)
	}
}

func TestParseRecord(t *testing.T) {
	c, err := parseRecord([]byte("1 1000 2000\n2 3000 4000\n3 50"))
	if err != nil || len(c) != 2 || c[1].K != 2 || c[1].Committed.UnixNano() != 4000 {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := parseRecord([]byte("1 1000 2000\nx\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Error(err)
	}
}

// TestChannel plays the guest: answers out of order, noise, and an end.
func TestChannel(t *testing.T) {
	host, guest := net.Pipe()
	c, hello := newChannel(host)
	defer c.close()
	b64 := base64.StdEncoding.EncodeToString
	go func() {
		fmt.Fprintf(guest, "0 0 %s -\n", b64([]byte("ready \n")))
		var ids [2]string
		var scripts [2]string
		for i := range 2 {
			fmt.Fscan(guest, &ids[i], &scripts[i])
		}
		fmt.Fprintf(guest, "noise\n99 0 - -\n%s x - -\n", ids[1])
		for i := 1; i >= 0; i-- {
			s, _ := base64.StdEncoding.DecodeString(scripts[i])
			fmt.Fprintf(guest, "%s 3 %s %s\n", ids[i], b64(s), b64([]byte("err")))
		}
		var third string
		fmt.Fscan(guest, &third, &third)
		guest.Close()
	}()
	if out := <-hello; out.Stdout != "ready \n" {
		t.Fatalf("%+v", out)
	}
	answers := make(chan error, 2)
	for _, script := range []string{"first", "second"} {
		go func() {
			out, err := c.run(t.Context(), script)
			if err == nil && (out != Output{Stdout: script, Stderr: "err", Status: 3}) {
				err = fmt.Errorf("%s: %+v", script, out)
			}
			answers <- err
		}()
	}
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	for range 2 { // the first is waiting when the guest ends, the second comes later
		if _, err := c.run(t.Context(), "third"); err == nil || !strings.Contains(err.Error(), errChannel.Error()) {
			t.Error(err)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add("1 0 - -")
	f.Add("7 255 aGk= -")
	f.Fuzz(func(t *testing.T, line string) {
		id, out, err := parseAnswer(line)
		if err == nil && (out.Stdout == "") != (strings.Fields(line)[2] == "-") && strings.Trim(strings.Fields(line)[2], "\r\n") != "" {
			t.Errorf("%q: %d, %+v", line, id, out)
		}
	})
}

// TestChildrenDieWithUs kills a copy of this program that has a child.
func TestChildrenDieWithUs(t *testing.T) {
	if os.Getenv("LAB_TEST_CHILD") == "1" {
		p, err := startProcess("sleep", []string{"600"}, filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("child %d\n", p.cmd.Process.Pid)
		<-p.done
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChildrenDieWithUs$")
	cmd.Env = append(os.Environ(), "LAB_TEST_CHILD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "child %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("child %d: %v", pid, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for deadline := time.Now().Add(30 * time.Second); ; {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return // gone, or dead and not yet reaped by init
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the child lives on")
		}
	}
}
