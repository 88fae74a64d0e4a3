package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/target"
)

// Config is what a data plane runs with. StateDir, Pools, Portals, IQN and
// Socket are required.
type Config struct {
	// StateDir holds the array's records (in "array") and the target's
	// (target.json, secrets, reservations). It must not lie in a pool.
	StateDir string
	// Pools are directories by name, one for each disk.
	Pools map[string]string
	// Limits of pools, by name. A pool without one may be used in full.
	Limits map[string]embedded.PoolLimit
	// Portals are where iSCSI is served, and nowhere else.
	Portals []Portal
	// Advertise are further addresses by which initiators reach the portals,
	// e.g. through a NAT. Paths name them first.
	Advertise []netip.AddrPort
	// IQN names the one target.
	IQN iscsi.Name
	// Socket is the path of the control API.
	Socket string

	// RequireCHAP refuses initiators without secrets.
	RequireCHAP bool
	// Initiators have their secrets in files; they win over those that were
	// added through the API.
	Initiators []remote.Initiator

	// ResyncRate limits copying to mirrors, bytes per second; 0: no limit.
	ResyncRate int64
	// ViewTimeout is how long a request to a published view may take before
	// its worker counts as hung. Default 10 s.
	ViewTimeout time.Duration
	// SplitDelay is slept before each split. It is for labs that show what a
	// slow array does.
	SplitDelay time.Duration

	// Ready, if set, is called once everything is served.
	Ready func(remote.Status)
}

// Portal is an address where iSCSI is served, and the portal group that it is in:
// what multipath software of hosts takes for one port of the array (RFC 7143
// section 4.4.2).
type Portal struct {
	Addr  netip.AddrPort
	Group uint16 // its tag; 0: target.DefaultPortalGroup
}

func (p Portal) group() uint16 { return cmp.Or(p.Group, target.DefaultPortalGroup) }

func (c *Config) check() error {
	switch {
	case c.StateDir == "":
		return errors.New("data plane: no state directory given")
	case len(c.Pools) == 0:
		return errors.New("data plane: no pool given; one directory for each disk")
	case len(c.Portals) == 0:
		return errors.New("data plane: no portal given; ADDRESS:PORT to serve iSCSI on")
	case c.Socket == "":
		return errors.New("data plane: no control socket given")
	}
	for name, l := range c.Limits {
		if _, ok := c.Pools[name]; !ok {
			return fmt.Errorf("data plane: limit of pool %q: there is no such pool", name)
		}
		if l.Limit < 0 || l.LowBytes < 0 || l.LowPercent > 100 {
			return fmt.Errorf("data plane: limit of pool %q: %+v makes no sense", name, l)
		}
	}
	if _, err := iscsi.ParseName(string(c.IQN)); err != nil {
		return fmt.Errorf("data plane: target's name: %w", err)
	}
	for _, i := range c.Initiators {
		if i.Secret != "" || i.MutualSecret != "" {
			return fmt.Errorf("data plane: initiator %s: a secret belongs into a file", i.IQN)
		}
		for _, f := range []string{i.SecretFile, i.MutualSecretFile} {
			if f != "" && !filepath.IsAbs(f) {
				return fmt.Errorf("data plane: initiator %s: secret file %q: want an absolute path", i.IQN, f)
			}
		}
	}
	if c.ViewTimeout <= 0 {
		c.ViewTimeout = 10 * time.Second
	}
	return nil
}
