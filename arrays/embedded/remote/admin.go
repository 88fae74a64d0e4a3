package remote

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Status asks for the data plane at a glance.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.call(ctx, "asking for the status", http.MethodGet, "/status", nil, &s)
	return s, err
}

// Events returns those that match and are still kept, oldest first.
func (c *Client) Events(ctx context.Context, q EventQuery) (es []Event, err error) {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	if q.After > 0 {
		set("after", strconv.FormatUint(q.After, 10))
	}
	if !q.Since.IsZero() {
		set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	set("volume", q.Volume)
	set("severity", q.Severity)
	err = c.call(ctx, "asking for events", http.MethodGet, "/events?"+v.Encode(), nil, &es)
	return es, err
}

// Volumes lists the volumes by name. Wherever a VolumeID is asked for, a name
// does as well.
func (c *Client) Volumes(ctx context.Context) (vs []Volume, err error) {
	err = c.call(ctx, "listing volumes", http.MethodGet, "/volumes", nil, &vs)
	return vs, err
}

// Volume describes one volume.
func (c *Client) Volume(ctx context.Context, v driver.VolumeID) (info Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("asking for volume %q", v), http.MethodGet, "/volumes/"+esc(v), nil, &info)
	return info, err
}

// CreateVolume makes a volume with one mirror in each pool named.
func (c *Client) CreateVolume(ctx context.Context, r CreateVolumeRequest) (v Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("creating volume %q", r.Name), http.MethodPost, "/volumes", r, &v)
	return v, err
}

// SetSnapshotPolicy says what splits of a volume are made of: "mirror",
// "reflink" or "auto".
func (c *Client) SetSnapshotPolicy(ctx context.Context, v driver.VolumeID, policy string) (info Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("changing the snapshots of volume %q", v), http.MethodPost, "/volumes/"+esc(v)+"/policy", PolicyRequest{policy}, &info)
	return info, err
}

// DeleteVolume deletes a volume that nobody uses. One that is not there is
// success.
func (c *Client) DeleteVolume(ctx context.Context, v driver.VolumeID) error {
	return c.call(ctx, fmt.Sprintf("deleting volume %q", v), http.MethodDelete, "/volumes/"+esc(v), nil, nil)
}

// ResizeVolume makes a volume larger; initiators are told.
func (c *Client) ResizeVolume(ctx context.Context, v driver.VolumeID, size int64) (info Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("resizing volume %q", v), http.MethodPost, "/volumes/"+esc(v)+"/resize", ResizeRequest{size}, &info)
	return info, err
}

// ExposeVolume serves a volume to initiators, besides those that have it
// already. Only those that are named, and only unless readOnly, get the right to
// write; none loses it.
func (c *Client) ExposeVolume(ctx context.Context, v driver.VolumeID, initiators []string, readOnly bool) (p driver.Path, err error) {
	err = c.call(ctx, fmt.Sprintf("exposing volume %q", v), http.MethodPost, "/volumes/"+esc(v)+"/expose", ExposeVolumeRequest{initiators, readOnly}, &p)
	return p, err
}

// UnexposeVolume takes the volume's LUN away from everybody.
func (c *Client) UnexposeVolume(ctx context.Context, v driver.VolumeID) error {
	return c.call(ctx, fmt.Sprintf("unexposing volume %q", v), http.MethodDelete, "/volumes/"+esc(v)+"/expose", nil, nil)
}

// AddMirror gives a volume another mirror and begins to fill it.
func (c *Client) AddMirror(ctx context.Context, v driver.VolumeID, pool string) (m Mirror, err error) {
	err = c.call(ctx, fmt.Sprintf("adding a mirror to volume %q", v), http.MethodPost, "/volumes/"+esc(v)+"/mirrors", AddMirrorRequest{pool}, &m)
	return m, err
}

// RemoveMirror takes a mirror away for good.
func (c *Client) RemoveMirror(ctx context.Context, v driver.VolumeID, m lun.Identity) error {
	return c.call(ctx, fmt.Sprintf("removing mirror %s of volume %q", m, v), http.MethodDelete, "/volumes/"+esc(v)+"/mirrors/"+m.String(), nil, nil)
}

// RepairVolume replaces what is broken or missing of a volume's mirrors, and
// returns when the copying has begun. What can't be repaired is in the error;
// the rest is.
func (c *Client) RepairVolume(ctx context.Context, v driver.VolumeID) (info Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("repairing the mirrors of volume %q", v), http.MethodPost, "/volumes/"+esc(v)+"/repair", nil, &info)
	return info, err
}

// WaitInSync returns when nothing is being copied to the volume's mirrors.
func (c *Client) WaitInSync(ctx context.Context, v driver.VolumeID) error {
	return c.call(ctx, fmt.Sprintf("waiting for volume %q", v), http.MethodGet, "/volumes/"+esc(v)+"/in-sync", nil, nil)
}

// StartScrub begins to compare a volume's mirrors while it is in use. A volume
// that is being scrubbed is Busy.
func (c *Client) StartScrub(ctx context.Context, v driver.VolumeID, repair bool) (info Volume, err error) {
	err = c.call(ctx, fmt.Sprintf("scrubbing volume %q", v), http.MethodPost, "/volumes/"+esc(v)+"/scrub", ScrubRequest{repair}, &info)
	return info, err
}

// WaitScrub returns what the scrub under way comes to, or the last one came to
// that ended by itself. One that ended early is an error. The scrub goes on if
// ctx ends.
func (c *Client) WaitScrub(ctx context.Context, v driver.VolumeID) (s Scrub, err error) {
	err = c.call(ctx, fmt.Sprintf("waiting for the scrub of volume %q", v), http.MethodGet, "/volumes/"+esc(v)+"/scrub", nil, &s)
	return s, err
}

// StopScrub ends a scrub. If none is under way, that is success.
func (c *Client) StopScrub(ctx context.Context, v driver.VolumeID) error {
	return c.call(ctx, fmt.Sprintf("stopping the scrub of volume %q", v), http.MethodDelete, "/volumes/"+esc(v)+"/scrub", nil, nil)
}

// Snapshots lists all splits.
func (c *Client) Snapshots(ctx context.Context) (ss []Snapshot, err error) {
	err = c.call(ctx, "listing snapshots", http.MethodGet, "/snapshots", nil, &ss)
	return ss, err
}

// Masks lists who sees which LUN, by initiator and number.
func (c *Client) Masks(ctx context.Context) (ms []Mask, err error) {
	err = c.call(ctx, "listing masks", http.MethodGet, "/masks", nil, &ms)
	return ms, err
}

// SetMask says what one initiator may do with a volume (by name or ID) or a
// snapshot (by ID), and changes nothing for others. The LUN is made if this is
// its first initiator, under a mask that is there before it; it is taken away
// with its last. What is so already is success.
func (c *Client) SetMask(ctx context.Context, of, initiator, access string) error {
	return c.call(ctx, fmt.Sprintf("setting the mask of %q for %s", of, initiator), http.MethodPut, "/masks", MaskRequest{of, initiator, access}, nil)
}

// Initiators lists who may log in.
func (c *Client) Initiators(ctx context.Context) (is []Initiator, err error) {
	err = c.call(ctx, "listing initiators", http.MethodGet, "/initiators", nil, &is)
	return is, err
}

// SetInitiator lets an initiator log in with its secrets, from its next login
// on.
func (c *Client) SetInitiator(ctx context.Context, i Initiator) error {
	return c.call(ctx, fmt.Sprintf("adding initiator %q", i.IQN), http.MethodPut, "/initiators/"+esc(i.IQN), i, nil)
}

// RemoveInitiator forgets an initiator's secrets. One that still sees a LUN is
// Busy; one that is not there is success.
func (c *Client) RemoveInitiator(ctx context.Context, iqn string) error {
	return c.call(ctx, fmt.Sprintf("removing initiator %q", iqn), http.MethodDelete, "/initiators/"+esc(iqn), nil, nil)
}

// Publish serves a recovered view as a LUN. Repeated with the same name and
// identity it returns the same LUN, where Writable may be raised and the
// socket be another one.
func (c *Client) Publish(ctx context.Context, p Publication) (path driver.Path, err error) {
	err = c.call(ctx, fmt.Sprintf("publishing view %q", p.Name), http.MethodPost, "/publications", p, &path)
	return path, err
}

// Withdraw takes a published view's LUN away. One that is not there is success.
func (c *Client) Withdraw(ctx context.Context, name string) error {
	return c.call(ctx, fmt.Sprintf("withdrawing view %q", name), http.MethodDelete, "/publications?name="+url.QueryEscape(name), nil, nil)
}

// Pools lists the pools.
func (c *Client) Pools(ctx context.Context) ([]Pool, error) {
	s, err := c.Status(ctx)
	return s.Pools, err
}
