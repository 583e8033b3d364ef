package main

// Files and directories as the K3s release lays them out.
const (
	etcDir           = "/etc/rancher/k3s"
	configFile       = etcDir + "/config.yaml"
	configDropIns    = etcDir + "/config.yaml.d"
	registriesFile   = etcDir + "/registries.yaml"
	kubeconfigFile   = etcDir + "/k3s.yaml"
	nodePasswordFile = "/etc/rancher/node/password"

	dataDir = "/var/lib/rancher/k3s"

	serverDir       = dataDir + "/server"
	serverTLS       = serverDir + "/tls"
	serverCred      = serverDir + "/cred"
	serverToken     = serverDir + "/token"
	nodeToken       = serverDir + "/node-token"
	agentToken      = serverDir + "/agent-token"
	serverManifests = serverDir + "/manifests"
	kineSocket      = serverDir + "/kine.sock"
	passwordFile    = serverCred + "/passwd"
	encryptionFile  = serverCred + "/encryption-config.json"
	joinFile        = serverCred + "/agent-settings.json"

	agentDir        = dataDir + "/agent"
	agentEtc        = agentDir + "/etc"
	kubeletConfDir  = agentEtc + "/kubelet.conf.d"
	cniConfDir      = agentEtc + "/cni/net.d"
	containerdConf  = agentEtc + "/containerd/config.toml"
	registryHosts   = agentEtc + "/containerd/certs.d"
	balancerFile    = agentEtc + "/k3s-agent-load-balancer.json"
	flannelConf     = agentEtc + "/flannel/net-conf.json"
	ownResolvConf   = agentEtc + "/resolv.conf"
	containerdRoot  = agentDir + "/containerd"
	containerdState = "/run/k3s/containerd"
	containerdSock  = containerdState + "/containerd.sock"
	storageDir      = dataDir + "/storage"

	// The subnet file is where upstream flannel has it; its CNI state too.
	flannelSubnet = "/run/flannel/subnet.env"
)

// Addresses of this machine's own endpoints.
const (
	apiPort        = 6443
	localAPI       = "https://127.0.0.1:6443" // a server's own API
	balancerListen = "127.0.0.1:6444"         // an agent's balancer over all servers
	nodePorts      = "30000-32767"            // where every node answers for services that ask for it
)
