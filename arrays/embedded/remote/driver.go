package remote

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Resolve implements driver.Driver. Besides what the array itself knows, the
// data plane finds a volume by IQN, LUN and portal.
func (c *Client) Resolve(ctx context.Context, d driver.Disk) (v driver.Volume, err error) {
	err = c.ask(ctx, "finding a disk's volume", "/resolve", d, &v)
	return v, err
}

// Prepare implements driver.Driver.
func (c *Client) Prepare(ctx context.Context, vs []driver.VolumeID, o driver.PrepareOptions) error {
	return c.call(ctx, "preparing a split", http.MethodPost, "/prepare", PrepareRequest{vs, o}, nil)
}

// Split implements driver.Driver.
func (c *Client) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	ss, err := c.split(ctx, SplitRequest{Tag: tag, Volumes: []driver.VolumeID{v}})
	if err != nil {
		return driver.Snapshot{}, err
	}
	return ss[0], nil
}

// SplitGroup implements driver.GroupSplitter.
func (c *Client) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	return c.split(ctx, SplitRequest{Tag: tag, Volumes: vs, Group: true})
}

func (c *Client) split(ctx context.Context, r SplitRequest) ([]driver.Snapshot, error) {
	what := fmt.Sprintf("splitting %d volumes under tag %q", len(r.Volumes), r.Tag)
	var ss []driver.Snapshot
	if err := c.call(ctx, what, http.MethodPost, "/split", r, &ss); err != nil {
		return nil, err
	}
	if len(ss) != len(r.Volumes) {
		return nil, driver.Errorf(driver.OutcomeUnknown, "%s: data plane answered with %d snapshots", what, len(ss))
	}
	return ss, nil
}

// Lookup implements driver.Driver.
func (c *Client) Lookup(ctx context.Context, tag driver.Tag) (ss []driver.Snapshot, err error) {
	err = c.call(ctx, fmt.Sprintf("looking for snapshots with tag %q", tag), http.MethodGet,
		"/lookup?tag="+url.QueryEscape(string(tag)), nil, &ss)
	return ss, err
}

// Delete implements driver.Driver.
func (c *Client) Delete(ctx context.Context, s driver.SnapshotID) error {
	return c.call(ctx, fmt.Sprintf("deleting snapshot %s", s), http.MethodDelete, "/snapshots/"+esc(s), nil, nil)
}

// Expose implements driver.Exposer. Initiators are added to those that it is
// exposed to already; only Unexpose takes one away.
func (c *Client) Expose(ctx context.Context, s driver.SnapshotID, o driver.ExposeOptions) (p driver.Path, err error) {
	err = c.call(ctx, fmt.Sprintf("exposing snapshot %s", s), http.MethodPost, "/snapshots/"+esc(s)+"/expose", o, &p)
	return p, err
}

// Unexpose implements driver.Exposer.
func (c *Client) Unexpose(ctx context.Context, s driver.SnapshotID) error {
	return c.call(ctx, fmt.Sprintf("unexposing snapshot %s", s), http.MethodDelete, "/snapshots/"+esc(s)+"/expose", nil, nil)
}

// Resync implements driver.Resyncer.
func (c *Client) Resync(ctx context.Context, s driver.SnapshotID) error {
	return c.call(ctx, fmt.Sprintf("resyncing snapshot %s", s), http.MethodPost, "/snapshots/"+esc(s)+"/resync", nil, nil)
}

// Describe implements driver.Describer.
func (c *Client) Describe(ctx context.Context) (d driver.Description, err error) {
	err = c.call(ctx, "asking what the array can do", http.MethodGet, "/describe", nil, &d)
	return d, err
}
