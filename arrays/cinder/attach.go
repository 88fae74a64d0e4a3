package cinder

import (
	"context"
	"encoding/json"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Connection is how an attached volume is reached.
type Connection struct {
	Protocol string // "iscsi" or "rbd"

	// For iSCSI: portals and targets belong together one by one; there is at
	// least one of each.
	Portals []string // host:port
	Targets []string // IQNs
	LUN     uint64
	CHAP    *driver.CHAP // nil: none

	// For RBD: "pool/image", the user's name, and monitors, host:port.
	Image    string
	User     string
	Monitors []string
}

// wireConnection is connection_info as os-brick's connectors take it.
type wireConnection struct {
	Protocol     string     `json:"driver_volume_type"`
	Portal       string     `json:"target_portal"`
	Portals      []string   `json:"target_portals"`
	Target       string     `json:"target_iqn"`
	Targets      []string   `json:"target_iqns"`
	LUN          flexible   `json:"target_lun"`
	LUNs         []flexible `json:"target_luns"`
	AuthMethod   string     `json:"auth_method"`
	AuthUser     string     `json:"auth_username"`
	AuthPassword string     `json:"auth_password"`
	Name         string     `json:"name"`
	Hosts        []string   `json:"hosts"`
	Ports        []flexible `json:"ports"`
}

// flexible is a number, which some back ends write as a string.
type flexible uint64

// UnmarshalJSON implements json.Unmarshaler.
func (f *flexible) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 0, 64)
	*f = flexible(n)
	return err
}

const maxPortals = 64

// connection reads what the attachment says. Its errors tell nothing of what
// stands there.
func (a attachment) connection() (Connection, error) {
	var w wireConnection
	if err := json.Unmarshal(a.Connection, &w); err != nil {
		return Connection{}, driver.Errorf(driver.NotSupported, "attachment %s: its connection can't be read", a.ID)
	}
	c := Connection{Protocol: w.Protocol}
	switch w.Protocol {
	case "iscsi":
		c.LUN, c.Portals, c.Targets = uint64(w.LUN), w.Portals, w.Targets
		if len(c.Portals) == 0 || len(c.Targets) != len(c.Portals) {
			c.Portals, c.Targets = []string{w.Portal}, []string{w.Target}
		}
		if len(w.LUNs) > 0 {
			c.LUN = uint64(w.LUNs[0])
		}
		if len(c.Portals) > maxPortals || slices.Contains(c.Targets, "") || slices.ContainsFunc(c.Portals, func(p string) bool { _, _, err := net.SplitHostPort(p); return err != nil }) ||
			slices.ContainsFunc(w.LUNs, func(l flexible) bool { return uint64(l) != c.LUN }) {
			return Connection{}, driver.Errorf(driver.NotSupported, "attachment %s: its iSCSI targets, portals and LUNs make no sense together", a.ID)
		}
		if w.AuthMethod != "" {
			if !strings.EqualFold(w.AuthMethod, "CHAP") {
				return Connection{}, driver.Errorf(driver.NotSupported, "attachment %s: it wants a method of authentication other than CHAP", a.ID)
			}
			c.CHAP = &driver.CHAP{User: w.AuthUser, Secret: driver.Secret(w.AuthPassword)}
		}
	case "rbd":
		c.Image, c.User = w.Name, w.AuthUser
		for i, h := range w.Hosts {
			if i < len(w.Ports) && i < maxPortals {
				c.Monitors = append(c.Monitors, net.JoinHostPort(strings.Trim(h, "[]"), strconv.FormatUint(uint64(w.Ports[i]), 10)))
			}
		}
		if pool, image, ok := strings.Cut(c.Image, "/"); !ok || pool == "" || image == "" {
			return Connection{}, driver.Errorf(driver.NotSupported, "attachment %s: its RBD image has no pool", a.ID)
		}
	default:
		return Connection{}, driver.Errorf(driver.NotSupported, "attachment %s: its volume is reached by %.40q; iscsi and rbd are known here", a.ID, w.Protocol)
	}
	return c, nil
}

// is reports whether a disk is what the connection leads to.
func (c Connection) is(x driver.Disk) bool {
	switch c.Protocol {
	case "iscsi":
		return x.IQN != "" && slices.Contains(c.Targets, x.IQN) && x.LUN == c.LUN
	case "rbd":
		return x.Path != "" && strings.TrimPrefix(x.Path, "rbd:") == c.Image
	}
	return false
}

func (d *Driver) attachments(ctx context.Context, volume string) ([]attachment, error) {
	all, err := list(ctx, d.c, "attachments/detail", "attachments", url.Values{"volume_id": {volume}}, func(a attachment) string { return a.ID })
	return slices.DeleteFunc(all, func(a attachment) bool { return a.Volume != volume }), err
}

// attach makes a volume of ours reachable by an initiator, or finds that it is.
// The initiator is written to the volume before, so that nobody else is taken for
// it.
func (d *Driver) attach(ctx context.Context, v volume, initiator string) (Connection, error) {
	if to := v.Metadata[toKey]; to != initiator {
		if as, err := d.attachments(ctx, v.ID); err != nil {
			return Connection{}, err
		} else if len(as) > 0 {
			return Connection{}, driver.Errorf(driver.Busy, "volume %s is attached for %q already", v.ID, to)
		}
		in := map[string]any{"metadata": map[string]string{toKey: initiator}}
		if err := d.c.call(ctx, act, "volumes/"+v.ID+"/metadata", nil, in, nil); err != nil {
			return Connection{}, err
		}
	}
	as, err := d.attachments(ctx, v.ID)
	if err != nil {
		return Connection{}, err
	}
	connector := map[string]any{
		"initiator": initiator, "host": d.o.Host, "ip": "127.0.0.1", "multipath": true, "platform": "x86_64", "os_type": "linux2", "do_local_attach": false,
	}
	var a attachment
	if len(as) == 0 {
		// Without instance_uuid: an empty one is refused, and one of no server
		// can't be detached.
		in := map[string]any{"attachment": map[string]any{"volume_uuid": v.ID, "connector": connector, "mode": "rw"}}
		a, err = send[attachment](ctx, d.c, create, "attachments", "attachment", in)
		if isKind(err, driver.OutcomeUnknown) { // the volume is ours, and marked for this initiator
			if found, lost := d.attachments(ctx, v.ID); lost == nil {
				as = found
			}
		}
	}
	if len(as) > 0 {
		if a, err = as[0], nil; a.Status == "reserved" || a.Status == "error_attaching" {
			a, err = send[attachment](ctx, d.c, change, "attachments/"+a.ID, "attachment", map[string]any{"attachment": map[string]any{"connector": connector}})
		}
	}
	if err != nil {
		return Connection{}, err
	}
	c, err := a.connection()
	if err != nil {
		return c, err
	}
	if a.Status == "attached" {
		return c, nil
	}
	err = d.c.call(ctx, act, "attachments/"+a.ID+"/action", nil, map[string]any{"os-complete": map[string]any{}}, nil)
	return c, err
}

// PresentedTo implements driver.Presenter: by the names of hosts that a volume is
// attached to, which administrators are told. Cinder tells nobody which initiators
// these are.
func (d *Driver) PresentedTo(ctx context.Context, v driver.VolumeID) (hosts []string, err error) {
	x, err := d.volume(ctx, string(v))
	if err != nil {
		return nil, err
	}
	for _, a := range x.Attached {
		if a.Host == "" {
			return nil, driver.Errorf(driver.NotSupported, "Cinder tells administrators only which hosts volume %s is attached to", v)
		}
		hosts = append(hosts, a.Host)
	}
	return hosts, nil
}

// detach ends all attachments of a volume.
func (d *Driver) detach(ctx context.Context, volume string) error {
	as, err := d.attachments(ctx, volume)
	for _, a := range as {
		if err := d.c.call(ctx, end, "attachments/"+a.ID, nil, nil, nil); err != nil && !isKind(err, driver.NotFound) {
			return err
		}
	}
	return err
}
