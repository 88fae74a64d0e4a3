package mainjob

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/orchestrator"
)

// exitBusy is cleave's exit status for what is in use.
const exitBusy = 5

// useDevice attaches the recovered LUN to this host and wants the set to stay as
// it is as long as somebody uses the device. It leaves the device there, idle;
// "" says that none can be made here.
func (s *scene) useDevice(set orchestrator.Set) string {
	s.Helper()
	_, fuse := os.Stat("/dev/fuse")
	_, loop := os.Stat("/dev/loop-control")
	if os.Geteuid() != 0 || fuse != nil || loop != nil {
		s.Log("no device of the LUN: this takes root, FUSE and loop devices")
		return ""
	}
	i := slices.IndexFunc(set.LUNs, func(l orchestrator.LUN) bool { return l.Clean })
	lun := s.stage.LUN(set.LUNs[i])
	url := fmt.Sprintf("iscsi://%s@%s/%s/%d", lun.User, lun.Portal, lun.Target, lun.Number)
	secret := filepath.Join(s.stage.Dir(), "proof.secret")
	s.ok(os.WriteFile(secret, []byte(lun.Secret), 0o600))
	out, err := s.stage.Cleave(s.ctx, "lun", "attach", url, "--src-chap-secret-file", secret, "--src-initiator", lun.Initiator, "--method", "fuse", "-o", "name")
	s.ok(err)
	dev := strings.TrimSpace(out)
	user, err := os.Open(dev)
	s.ok(err)
	defer user.Close()

	var said *stage.Error
	if _, err := s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID)); !errors.As(err, &said) || said.Code != exitBusy || !strings.Contains(said.Stderr, dev) {
		s.Errorf("deleted under a device in use: %v", err)
	}
	got, err := s.stage.Set(s.ctx, "snapshot", "show", string(set.ID))
	s.ok(err)
	if got.State != orchestrator.StateReady || !slices.Equal(got.LUNs[i].Devices, []string{dev}) {
		s.Errorf("refused, it is %s, its LUN has devices %q, want %s", got.State, got.LUNs[i].Devices, dev)
	}
	if _, err := user.Read(make([]byte, 4096)); err != nil {
		s.Errorf("and the device: %v", err)
	}
	return dev
}
