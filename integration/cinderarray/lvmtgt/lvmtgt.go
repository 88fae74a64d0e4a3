// Package lvmtgt starts a Cinder whose storage is a machine of its own: a VM with lvm2
// and tgtd, from Debian's packages, that exports logical volumes by iSCSI with CHAP,
// as Cinder's LVM back end has it. It is for tests only.
package lvmtgt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/integration/lab"
)

// Backend is the name of the back end, and of its volume type.
const Backend = "lvm"

const (
	group = "cinder-volumes"
	port  = 3260
	// patience is how long one command may take: without KVM lvm2 needs seconds.
	patience = 2 * time.Minute
)

// Storage is the VM and the Cinder that has it.
type Storage struct {
	*cinderlab.Cinder
	host *lab.Machine
	dir  string // where Cinder describes its targets
}

// Start boots the VM and starts Cinder. Kind is Cinder's lvm_type: "thin", whose
// volumes of snapshots are clones, or "default", which copies them.
func Start(t testing.TB, kind string) *Storage {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 24<<30)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := lab.Boot(ctx, lab.VM{
		Name: "storage", Kind: lab.Proof, Memory: 512, Forward: []int{port},
		Modules: []string{"dm-snapshot", "dm-thin-pool"}, Disks: []lab.Disk{{File: disk}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &Storage{host: m, dir: filepath.Join(dir, "volumes")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.run("lvs -a " + group + "; tgtadm --lld iscsi --op show --mode target; dmesg | tail -n 20"))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	out, stderr, status := s.run(fmt.Sprintf(`set -e
mkdir -p /etc/tgt/conf.d %[1]s
echo 'include %[1]s/*' >/etc/tgt/targets.conf
tgtd
for i in $(seq 100); do tgtadm --op show --mode sys >/dev/null 2>&1 && break; sleep 0.1; done
pvcreate -q %[2]s
vgcreate -q %[3]s %[2]s`, s.dir, strings.Join(m.Disks(), " "), group))
	if status != 0 {
		t.Fatalf("preparing the storage: %d: %s%s", status, out, stderr)
	}
	host, at, _ := strings.Cut(m.Addr(port), ":")
	s.Cinder = cinderlab.StartOn(t, s.perform, map[string]string{Backend: fmt.Sprintf(`volume_driver = cinder.volume.drivers.lvm.LVMVolumeDriver
volume_group = %s
lvm_type = %s
lvm_conf_file = none
target_helper = tgtadm
target_protocol = iscsi
target_ip_address = %s
target_port = %s
use_chap_auth = true
volumes_dir = %s
volume_clear = none`, group, kind, host, at, s.dir)})
	return s
}

// run performs a script on the storage's machine.
func (s *Storage) run(script string) (stdout, stderr string, status int) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := s.host.Run(ctx, script)
	var exit *lab.ExitError
	switch {
	case errors.As(err, &exit):
		out = exit.Output
		return out.Stdout, out.Stderr, out.Status
	case err != nil:
		return "", err.Error(), 255
	}
	return out.Stdout, out.Stderr, 0
}

// perform is a command of Cinder's. What Cinder has written about its targets goes
// with those that read it.
func (s *Storage) perform(args []string) (stdout, stderr string, status int) {
	script := ""
	if args[0] == "udevadm" {
		return "", "", 0 // there is no udev
	}
	if args[0] == "tgt-admin" {
		var err error
		if script, err = s.targets(); err != nil {
			return "", err.Error(), 255
		}
	}
	for _, a := range args {
		script += quote(a) + " "
	}
	return s.run(script)
}

// targets is a script that brings the descriptions of targets up to date.
func (s *Storage) targets() (string, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	script := "rm -f " + s.dir + "/*\n"
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.dir, f.Name()))
		if err != nil {
			return "", err
		}
		script += "printf %s " + quote(string(b)) + " >" + quote(filepath.Join(s.dir, f.Name())) + "\n"
	}
	return script, nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Attach attaches a volume to an initiator, and returns how that reaches it.
func (s *Storage) Attach(volume, initiator string) lab.LUN {
	var a struct {
		Attachment struct {
			ID   string
			Info struct {
				Portal string `json:"target_portal"`
				Target string `json:"target_iqn"`
				LUN    int    `json:"target_lun"`
				Method string `json:"auth_method"`
				User   string `json:"auth_username"`
				Secret string `json:"auth_password"`
			} `json:"connection_info"`
		}
	}
	connector := map[string]any{"initiator": initiator, "host": "hypervisor", "ip": "127.0.0.1", "multipath": false, "platform": "x86_64", "os_type": "linux2", "do_local_attach": false}
	s.Do(http.MethodPost, "attachments", map[string]any{"attachment": map[string]any{"volume_uuid": volume, "connector": connector, "mode": "rw"}}, &a)
	s.Do(http.MethodPost, "attachments/"+a.Attachment.ID+"/action", map[string]any{"os-complete": map[string]any{}}, nil)
	i := a.Attachment.Info
	return lab.LUN{Portal: i.Portal, Target: i.Target, Number: i.LUN, Initiator: initiator, User: i.User, Secret: i.Secret}
}

// Left is what lvm2 and tgtd still have, beside the thin pool: volumes by name, and
// targets.
func (s *Storage) Left(t testing.TB) (volumes, targets []string) {
	t.Helper()
	out, stderr, status := s.run("lvs --noheadings -o lv_name " + group + "; tgtadm --lld iscsi --op show --mode target | grep ^Target || :")
	if status != 0 {
		t.Fatal(stderr)
	}
	for line := range strings.Lines(out) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "Target"):
			targets = append(targets, line)
		case line != group+"-pool":
			volumes = append(volumes, line)
		}
	}
	return volumes, targets
}
