package remote

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// maxMirrors is how many mirrors a volume may be to have (embedded's limit).
const maxMirrors = 64

// portalLimit bounds how long one portal may take to accept a connection.
const portalLimit = 3 * time.Second

// Check implements driver.Checker. Each volume of the next set is judged by
// itself: whether it has a mirror that can be split off, or a pool to clone it in.
// A set needs two LUNs for each of its volumes, the recovered view and the split.
func (c *Client) Check(ctx context.Context, next []driver.VolumeID) ([]driver.Finding, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	vs, err := c.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	fs := []driver.Finding{{
		Area: driver.AreaPermission, Check: "control socket", Result: driver.OK,
		Detail: "whoever may open " + c.socket + " may do everything; this user may",
	}}
	for _, p := range st.Listening {
		fs = append(fs, checkPortal(ctx, p))
	}
	pools := map[string]Pool{}
	for _, p := range st.Pools {
		pools[p.Name] = p
		fs = append(fs, checkPool(p))
	}
	splits := 0
	for _, v := range vs {
		if len(next) > 0 && !slices.Contains(next, v.ID) {
			continue
		}
		if splits++; len(next) == 0 {
			splits = 1 // a set of one volume
		}
		of := checkVolume(v, pools)
		if len(next) == 0 && of.Result == driver.Failed {
			of.Result = driver.Warning // it may be no VM's
		}
		fs = append(fs, of, checkMirrors(v))
		for _, m := range v.Replicas {
			if m.Reason != "" {
				fs = append(fs, driver.Finding{
					Area: driver.AreaHealth, Check: "volume " + v.Name, Result: driver.Warning,
					Detail: fmt.Sprintf("mirror %s in pool %s is %s: %s", m.ID, m.Pool, m.State, m.Reason), Try: "`cleave mirror repair " + v.Name + "`",
				})
			}
		}
	}
	if st.MaxLUNs == 0 {
		fs = append(fs, driver.Finding{Area: driver.AreaLimit, Check: "LUN numbers", Result: driver.Unchecked, Detail: "the data plane does not tell how many it has"})
	} else {
		l := driver.Limit{Unit: "LUN numbers", Used: int64(len(st.LUNs)), Most: int64(st.MaxLUNs), Next: int64(2 * splits)}
		fs = append(fs, driver.Room("LUN numbers", l, "delete snapshot sets that are no longer needed"))
	}
	for _, l := range st.LUNs {
		if l.Problem != "" {
			fs = append(fs, driver.Finding{
				Area: driver.AreaHealth, Check: fmt.Sprintf("LUN %d", l.LUN), Result: driver.Warning,
				Detail: fmt.Sprintf("%s %s: %s", l.Kind, l.Of, l.Problem), Try: "`cleave array show`",
			})
		}
	}
	return fs, nil
}

// checkPortal connects to a portal of the target and hangs up.
func checkPortal(ctx context.Context, p Portal) driver.Finding {
	f := driver.Finding{Area: driver.AreaReach, Check: "portal " + p.Address, Result: driver.OK, Detail: "accepts connections from this host"}
	d := net.Dialer{Timeout: portalLimit}
	conn, err := d.DialContext(ctx, "tcp", p.Address)
	if err != nil {
		f.Result, f.Detail, f.Try = driver.Failed, err.Error(), "check the firewall, and `cleave array show`"
		return f
	}
	_ = conn.Close() // nothing was sent
	return f
}

// checkPool tells the room in a pool. A mirror that is split off needs none, and
// a clone little until production writes: what is needed then nobody knows.
func checkPool(p Pool) driver.Finding {
	f := driver.Finding{
		Area: driver.AreaLimit, Check: "pool " + p.Name, Result: driver.OK,
		Detail: fmt.Sprintf("%s free of %s, %s used by mirrors, %s if they were written in full", driver.Bytes(p.Free), driver.Bytes(p.Size), driver.Bytes(p.Used), driver.Bytes(p.Provisioned)),
		Limit:  &driver.Limit{Unit: "bytes", Used: p.Size - p.Free, Most: p.Size},
	}
	if p.Reflink {
		f.Detail += "; with reflinks"
	} else {
		f.Detail += "; without reflinks"
	}
	switch p.Health {
	case "ok":
	case "low":
		f.Result, f.Try = driver.Warning, "free space in "+p.Dir
	case "full":
		f.Result, f.Try = driver.Failed, "free space in "+p.Dir
	default:
		f.Result, f.Detail, f.Limit, f.Try = driver.Failed, p.Health+": "+p.Reason, nil, "check "+p.Dir
	}
	return f
}

// checkVolume tells whether a volume can be split, and what that leaves it with.
func checkVolume(v Volume, pools map[string]Pool) driver.Finding {
	f := driver.Finding{Area: driver.AreaLimit, Check: "split of volume " + v.Name, Result: driver.OK}
	inSync, coming, clones := 0, 0, false
	for _, m := range v.Replicas {
		switch m.State {
		case driver.Synchronized:
			inSync++
			clones = clones || pools[m.Pool].Reflink
		case driver.Unsynchronized, driver.Broken:
			coming++ // Prepare waits for it, or replaces it
		}
	}
	if v.Policy == "reflink" || v.Policy == "auto" && inSync < 3 && clones {
		f.Detail = fmt.Sprintf("by reflink; %d of %d mirrors are in sync", inSync, v.Wanted)
		switch {
		case inSync == 0:
			f.Result, f.Detail, f.Try = driver.Failed, "no mirror is in sync", "`cleave mirror status "+v.Name+"`"
		case !clones:
			f.Result, f.Detail, f.Try = driver.Failed, "it is to be split by reflink, and no pool of its mirrors has reflinks", "`cleave volume set "+v.Name+" --snapshots mirror`"
		}
		return f
	}
	l := driver.Limit{Unit: "mirrors", Used: int64(len(v.Snapshots)), Most: int64(len(v.Snapshots) + max(inSync-1, 0)), Next: 1}
	f.Limit = &l
	f.Detail = fmt.Sprintf("%d of %d mirrors are in sync, %d can be split off, %d are off", inSync, v.Wanted, max(inSync-1, 0), len(v.Snapshots))
	switch {
	case inSync > 2:
	case inSync == 2:
		f.Result, f.Try = driver.Warning, "--allow-unmirrored consents to one copy until the resync; `cleave mirror add` gives it a third"
		f.Detail += "; the split leaves production with one"
	case inSync == 1 && coming > 0:
		f.Result, f.Try = driver.Warning, "`cleave mirror status "+v.Name+"`"
		f.Detail += fmt.Sprintf("; the next set waits for %d to be copied", coming)
	default:
		f.Result, f.Try = driver.Failed, "`cleave mirror add`, or delete the snapshot set that has its mirror"
	}
	return f
}

// checkMirrors tells how many more mirrors, and so splits, a volume may have.
func checkMirrors(v Volume) driver.Finding {
	l := driver.Limit{Unit: "mirrors", Used: int64(v.Wanted), Most: maxMirrors}
	return driver.Room("mirrors of volume "+v.Name, l, "resync splits, or remove a mirror")
}

var _ driver.Checker = (*Client)(nil)
