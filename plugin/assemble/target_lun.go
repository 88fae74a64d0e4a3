package assemble

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/plugin/cli"
)

// lunRecovery is for how long a request waits for a target that is away. It
// is shorter than a worker waits for its disk, so that the reason is told.
const lunRecovery = 20 * time.Second

// isLUN says whether a source is a LUN, or an export of an NBD server, and no path.
func isLUN(source string) bool {
	return strings.HasPrefix(source, iscsi.Scheme) || nbd.IsURI(source)
}

// served is a source that a server has.
type served interface {
	lun.Device
	io.Closer
	ID() string // who it is
}

// openLUN opens what is at a URL. What is to be written and can't be is refused.
func openLUN(ctx context.Context, url string, login cli.LUNLogin, writable bool) (served, error) {
	if nbd.IsURI(url) {
		return openExport(ctx, url, login, writable)
	}
	return openISCSI(ctx, url, login, writable)
}

// export is one of an NBD server's. Who it is, only who named it can tell.
type export struct {
	*nbd.Client
	id string
}

func (e export) ID() string { return e.id }

func openExport(ctx context.Context, url string, login cli.LUNLogin, writable bool) (served, error) {
	u, err := nbd.ParseURI(url)
	if err != nil {
		return nil, usage("%w", err)
	}
	c, err := nbd.Dial(ctx, u.Network, u.Address, nbd.ClientOptions{Export: u.Export, Timeout: viewTimeout})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, targetError(u.Address, err))
	}
	if writable && c.ReadOnly() {
		return nil, errors.Join(usage("%s: it is write protected: give --read-only", url), c.Close())
	}
	id := login.Identities[url]
	if id == "" {
		id = url
	}
	return export{c, id}, nil
}

func openISCSI(ctx context.Context, url string, login cli.LUNLogin, writable bool) (served, error) {
	u, err := iscsi.ParseURL(url)
	if err != nil {
		return nil, usage("%w", err)
	}
	o := initiator.Options{
		Portals: []string{u.Portal}, Target: u.Target, LUN: u.LUN, Initiator: login.Initiator,
		Identity: login.Identities[url], ReadOnly: !writable, Recovery: lunRecovery, Timeout: lunRecovery,
	}
	if u.User != "" {
		o.CHAP = &mask.Credentials{User: u.User, Secret: login.Secret, MutualUser: login.MutualUser, MutualSecret: login.MutualSecret}
	}
	if o.Initiator == "" {
		if o.Initiator, err = hostInitiator(initiatorFile); err != nil {
			return nil, err
		}
	}
	d, err := initiator.Open(ctx, o)
	if err != nil {
		return nil, targetError(u.Portal, err)
	}
	if writable && d.ReadOnly() {
		return nil, errors.Join(usage("%s: it is write protected: give --read-only", url), d.Close())
	}
	return d, nil
}

// targetError gives an error of the initiator its place among ours, with a hint.
func targetError(portal string, err error) error {
	var refused net.Error
	is := func(kind error, hint string, args ...any) error {
		return fmt.Errorf("%w: %w", err, &hinted{kind, fmt.Sprintf(hint, args...)})
	}
	switch {
	case errors.Is(err, initiator.ErrAuth):
		return is(orchestrator.ErrNotPermitted, "check the user in the URL, --src-chap-secret-file, and --src-initiator: the target knows who may log in")
	case errors.Is(err, initiator.ErrNoTarget), errors.Is(err, initiator.ErrNoLUN):
		return is(orchestrator.ErrNotFound, "check IQN and LUN, and that the target shows them to the name of --src-initiator")
	case errors.As(err, &refused), errors.Is(err, syscall.ECONNREFUSED):
		return is(orchestrator.ErrUnreachable, "check that the target listens at %s, and the way there", portal)
	}
	return err
}

// initiatorFile is where open-iscsi keeps the name of this host.
const initiatorFile = "/etc/iscsi/initiatorname.iscsi"

// hostInitiator is the name that this host's kernel logs in under, or else one of
// our own that stays the same.
func hostInitiator(path string) (iscsi.Name, error) {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(io.LimitReader(f, 4096)); lines.Scan(); {
			if name, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "InitiatorName="); ok {
				return iscsi.ParseName(strings.TrimSpace(name))
			}
		}
	}
	id, err := machineID()
	if err != nil {
		return "", fmt.Errorf("name of this host: %w", err)
	}
	h := sha256.Sum256([]byte("cleave initiator\x00" + id))
	return iscsi.Name("iqn.2026-01.io.github.cleave-san:host-" + hex.EncodeToString(h[:6])), nil
}

// synced makes what was written stable before it closes a disk.
type synced struct{ served }

func (d synced) Close() error { return errors.Join(d.Sync(), d.served.Close()) }
