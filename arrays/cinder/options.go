package cinder

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Options of a Driver. Either Cloud or Endpoint is set.
type Options struct {
	// Cloud is the entry of clouds.yaml that says where Keystone is and with
	// what to log in: a password or an application credential. Secrets are in
	// that file, or in a secure.yaml beside it.
	Cloud string
	// CloudsFile is the path of clouds.yaml. Default: where OpenStack's own
	// client looks.
	CloudsFile string

	// Endpoint of a Cinder without Keystone (auth_strategy = noauth), up to the
	// version: "http://host:8776/v3". Project is the project's ID, in
	// hexadecimal digits, and User a name.
	Endpoint, Project, User string

	// GroupType is the group type for volumes that are in no group yet. Empty:
	// only volumes that are a group already are split as one.
	GroupType string

	// Host is how this host calls itself to the storage. Portals of an
	// attachment may depend on it. Default: "cleave".
	Host string

	// Connect opens a volume that Cinder has attached to this host as Initiator.
	// Without it snapshots are not read here, only exposed.
	Connect   func(context.Context, Connection) (lun.Device, error)
	Initiator string

	// Limit is the longest that a call may take, where its caller leaves more.
	// Default: ten minutes.
	Limit time.Duration

	// pause waits between attempts; tests replace it.
	pause func(context.Context, time.Duration) error
}

// microversion is what the requests are written for (Stein): attachments are 3.27,
// group snapshots 3.14, their completion 3.44.
const microversion = "3.60"

// maxReply is the longest reply that is read, in bytes.
const maxReply = 32 << 20

func (o *Options) check() error {
	switch {
	case (o.Cloud == "") == (o.Endpoint == ""):
		return driver.Errorf(driver.InvalidRequest, "want the name of a cloud in clouds.yaml, or the endpoint of a Cinder without authentication")
	case o.Endpoint == "":
		return nil
	case o.CloudsFile != "":
		return driver.Errorf(driver.InvalidRequest, "a clouds.yaml has no use beside an endpoint without authentication")
	case o.Project == "" || strings.Trim(o.Project, "0123456789abcdefABCDEF-") != "":
		return driver.Errorf(driver.InvalidRequest, "project %.80q: want its ID, in hexadecimal digits", o.Project)
	}
	if u, err := url.Parse(o.Endpoint); err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return driver.Errorf(driver.InvalidRequest, "endpoint: want http://host:8776/v3 or https, without a user") // what is there may be a secret
	}
	return nil
}

// login makes a client of Cinder. It reads files and asks Keystone.
func (o *Options) login(ctx context.Context) (*gophercloud.ServiceClient, error) {
	if o.Endpoint != "" {
		user := o.User
		if user == "" {
			user = "admin"
		}
		p := &gophercloud.ProviderClient{TokenID: user + ":" + o.Project, HTTPClient: bounded(nil)}
		return versioned(&gophercloud.ServiceClient{ProviderClient: p, Endpoint: strings.TrimRight(o.Endpoint, "/") + "/" + o.Project + "/"}), nil
	}
	parse := []clouds.ParseOption{clouds.WithCloudName(o.Cloud)}
	if o.CloudsFile != "" {
		parse = append(parse, clouds.WithLocations(o.CloudsFile))
	}
	auth, where, tls, err := clouds.Parse(parse...)
	if err != nil {
		return nil, driver.Errorf(driver.InvalidRequest, "cloud %q of clouds.yaml: %s", o.Cloud, oneLine(err.Error()))
	}
	auth.AllowReauth = true
	p, err := openstack.NewClient(auth.IdentityEndpoint)
	if err != nil {
		return nil, driver.Errorf(driver.InvalidRequest, "cloud %q of clouds.yaml: auth_url: %s", o.Cloud, oneLine(err.Error()))
	}
	p.HTTPClient = bounded(tls)
	if err := openstack.Authenticate(ctx, p, auth); err != nil {
		return nil, loginFailure(ctx, err)
	}
	c, err := openstack.NewBlockStorageV3(p, where)
	if err != nil {
		return nil, driver.Errorf(driver.NotFound, "cloud %q has no Cinder (volumev3) in its catalogue: %s", o.Cloud, oneLine(err.Error()))
	}
	return versioned(c), nil
}

func versioned(c *gophercloud.ServiceClient) *gophercloud.ServiceClient {
	c.Type, c.Microversion = "volume", microversion
	return c
}

// bounded is a client that reads no reply without end.
func bounded(t *tls.Config) http.Client {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = t
	tr.ResponseHeaderTimeout = 2 * time.Minute
	return http.Client{Transport: limited{tr}}
}

type limited struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxReply), resp.Body}
	}
	return resp, err
}
